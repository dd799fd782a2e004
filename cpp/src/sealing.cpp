#include "sealing.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "failure.hpp"
#include "keys.hpp"
#include "reader.hpp"

namespace whet::internal {
namespace {

constexpr std::uint64_t kChunk = 64 << 10;
constexpr std::uint64_t kStep = kChunk + kTagBytes;
constexpr std::size_t kSaltDigits = 64;
const std::string kCipher = "chacha20-poly1305";
const std::string kPurpose = "whet sealed member 1\n";

std::uint64_t chunk_count(std::uint64_t plain) { return std::max<std::uint64_t>(1, (plain + kChunk - 1) / kChunk); }

std::uint64_t chunk_size(std::uint64_t number, std::uint64_t plain) { return std::min(kChunk, plain - number * kChunk); }

// 11 bytes with the number of the chunk, big-endian, and one that says whether it is the last.
Nonce nonce_of(std::uint64_t number, bool last) {
  Nonce nonce{};
  for (std::size_t i = 0; i < sizeof(number); ++i) nonce[kNonceBytes - 2 - i] = static_cast<std::uint8_t>(number >> 8 * i);
  nonce[kNonceBytes - 1] = last ? 1 : 0;
  return nonce;
}

SealHeader read(const Reader& top, const std::string& source) {
  const std::int64_t version = top.integer("format_version");
  if (version > kSealedFormatVersion)
    throw Failure(WHET_NEWER_FORMAT,
                  text_of(source, " has format version ", version, "; this whet reads up to ", kSealedFormatVersion,
                          ". Upgrade whet on this device, or save the bundle with an older one"));
  const Reader encryption = top.object("encryption");
  const std::string cipher = encryption.text("cipher"), salt = encryption.text("salt");
  const bool hex = salt.size() == kSaltDigits && salt.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (version != kSealedFormatVersion || cipher != kCipher || !hex)
    throw Malformed(text_of("it has the version ", version, ", the cipher ", in_quotes(cipher), ", the salt ",
                            in_quotes(salt)));
  SealHeader header;
  for (std::size_t i = 0; i < kSaltDigits; i += 2)
    header.salt += static_cast<char>(std::stoi(salt.substr(i, 2), nullptr, 16));
  for (const auto& [name, item] : top.table("members")) header.members.emplace(name, read_member(item));
  header.target = read_target(top.object("target"));
  header.key_id = encryption.text("key");
  return header;
}

}  // namespace

SealHeader parse_seal_header(const std::string& text, const std::string& source) {
  const Json value = parse_json(text);
  try {
    return read(Reader(value, ""), source);
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(source, " is not an encrypted bundle that whet wrote: ", error.what(),
                                        ". Save it again"));
  }
}

std::uint64_t plain_size(std::uint64_t sealed) {
  const std::uint64_t tags = kTagBytes * std::max<std::uint64_t>(1, (sealed + kStep - 1) / kStep);
  const std::uint64_t size = sealed - tags;
  if (sealed < tags || size + kTagBytes * chunk_count(size) != sealed)
    throw Malformed(text_of("has ", sealed, " bytes, which no sealed member has"));
  return size;
}

MemberCipher::MemberCipher(const Key& key, const std::string& salt, const std::string& name)
    : key_(derived_key(key, salt, kPurpose + name)), associated_(kPurpose + secret_key_id(key) + "\n" + name) {}

void MemberCipher::open(std::uint64_t number, std::uint64_t size, const std::string& sealed,
                        std::uint8_t* place) const {
  const Nonce nonce = nonce_of(number, number + 1 == chunk_count(size));
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(sealed.data());
  if (!decrypt(key_, nonce, associated_, bytes, sealed.size() - kTagBytes, place))
    throw Malformed("cannot be decrypted (it was changed, or encrypted with another key)");
}

std::string open_sealed(const MemberCipher& cipher, const std::string& sealed) {
  const std::uint64_t size = plain_size(sealed.size());
  std::string plain(static_cast<std::size_t>(size), '\0');
  for (std::uint64_t number = 0; number < chunk_count(size); ++number) {
    const auto length = static_cast<std::size_t>(chunk_size(number, size) + kTagBytes);
    auto* const place = reinterpret_cast<std::uint8_t*>(plain.data()) + number * kChunk;
    cipher.open(number, size, sealed.substr(static_cast<std::size_t>(number * kStep), length), place);
  }
  return plain;
}

OpenedFile::OpenedFile(std::shared_ptr<const Readable> file, const std::map<std::string, Stored>& sealed,
                       const Key& key, const std::string& salt)
    : file_(std::move(file)) {
  std::uint64_t begin = 0;
  for (const auto& [name, stored] : sealed) {
    const std::uint64_t end = begin + plain_size(stored.size);
    places_.push_back({begin, end, stored.offset, MemberCipher(key, salt, name)});
    members_[name] = {begin, end - begin, 0};
    begin = end;
  }
}

void OpenedFile::read(std::uint64_t offset, void* place, std::size_t count) const {
  auto* next = static_cast<std::uint8_t*>(place);
  for (const Place& member : places_)
    while (count > 0 && offset >= member.begin && offset < member.end) {
      const std::uint64_t at = offset - member.begin;
      const std::vector<std::uint8_t>& opened = chunk(member, at / kChunk);
      const auto first = static_cast<std::size_t>(at % kChunk);
      const std::size_t piece = std::min(count, opened.size() - first);
      std::memcpy(next, opened.data() + first, piece);
      next += piece;
      offset += piece;
      count -= piece;
    }
  if (count > 0) throw Malformed("ends too early");
}

const std::vector<std::uint8_t>& OpenedFile::chunk(const Place& place, std::uint64_t number) const {
  if (held_place_ == &place && held_number_ == number) return held_;
  const std::uint64_t size = place.end - place.begin;
  const auto length = static_cast<std::size_t>(chunk_size(number, size));
  const std::string sealed = file_->read(place.offset + number * kStep, length + kTagBytes);
  held_place_ = nullptr;
  held_.resize(length);
  place.cipher.open(number, size, sealed, held_.data());
  held_place_ = &place;
  held_number_ = number;
  return held_;
}

}  // namespace whet::internal
