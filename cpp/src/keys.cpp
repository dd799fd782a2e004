#include "keys.hpp"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "checksum.hpp"
#include "failure.hpp"
#include "file.hpp"

namespace whet::internal {
namespace {

constexpr std::size_t kIdDigits = 32;
// A longer file is no key.
constexpr std::uint64_t kLongestFile = 1 << 16;

std::string fingerprint(const char* prefix, std::size_t size, const Key& key) {
  Sha256 digest;
  digest.update(prefix, size);
  digest.update(key.data(), key.size());
  return digest.hex().substr(0, kIdDigits);
}

Key key_at(const std::uint8_t* bytes) {
  Key key{};
  std::memcpy(key.data(), bytes, key.size());
  return key;
}

std::string contents(const std::string& path) {
  const File file(path);
  if (file.size() > kLongestFile) throw Failure(WHET_BAD_INPUT, text_of(path, " is no key: it is too long"));
  return file.read(0, static_cast<std::size_t>(file.size()));
}

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::string stripped(const std::string& text) {
  const auto begin = std::find_if_not(text.begin(), text.end(), is_space);
  const auto end = std::find_if_not(text.rbegin(), std::make_reverse_iterator(begin), is_space).base();
  return {begin, end};
}

}  // namespace

Access Access::of(const whet_keys* keys) {
  Access access;
  if (keys == nullptr) return access;
  if (keys->trusted != nullptr) {
    if (keys->trusted_count == 0)
      throw Failure(WHET_BAD_INPUT, "the list of trusted keys is empty: give those that may have signed the bundle");
    access.trusted.emplace();
    for (std::size_t i = 0; i < keys->trusted_count; ++i)
      access.trusted->push_back(key_at(keys->trusted + i * WHET_KEY_BYTES));
  }
  if (keys->key != nullptr) access.key = key_at(keys->key);
  // Now, and not after most of the bundle was read: without libcrypto this throws.
  if ((access.trusted || access.key) && !has_crypto()) derived_key({}, "", "");
  return access;
}

std::string public_key_id(const Key& key) { return fingerprint("", 0, key); }

std::string secret_key_id(const Key& key) {
  constexpr char prefix[] = "whet bundle key";
  // With the zero byte at its end.
  return fingerprint(prefix, sizeof(prefix), key);
}

Key read_public_key(const std::string& path) {
  try {
    return public_key_of_pem(contents(path));
  } catch (const Malformed& error) {
    throw Failure(WHET_BAD_INPUT, text_of(path, " ", error.what()));
  }
}

Key read_secret_key(const std::string& path) {
  const std::string data = contents(path), text = stripped(data);
  if (data.size() == WHET_KEY_BYTES) return key_at(reinterpret_cast<const std::uint8_t*>(data.data()));
  const bool hex = text.size() == 2 * WHET_KEY_BYTES &&
                   text.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (!hex)
    throw Failure(WHET_BAD_INPUT, text_of(path, " is no key for encryption: that is ", WHET_KEY_BYTES,
                                          " bytes, raw or as ", 2 * WHET_KEY_BYTES, " hexadecimal digits"));
  Key key{};
  for (std::size_t i = 0; i < key.size(); ++i)
    key[i] = static_cast<std::uint8_t>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
  return key;
}

}  // namespace whet::internal
