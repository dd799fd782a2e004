#include "bundle.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <optional>

#include "checksum.hpp"
#include "container.hpp"
#include "failure.hpp"
#include "host.hpp"
#include "packed.hpp"
#include "safetensors.hpp"
#include "sealing.hpp"
#include "signature.hpp"

namespace whet::internal {
namespace {

const std::string kLibrary = "lib.so", kWeights = "weights.safetensors", kPacked = "weights.packed",
                  kManifest = "manifest.json", kSealedManifest = "manifest.sealed", kSignature = "signature";
constexpr std::uint64_t kManifestLimit = std::uint64_t{64} << 20;
constexpr const char* kNoChecksum = "does not have its checksum (sha256)";

using Members = std::map<std::string, Stored>;

std::string hex_sha256(const std::string& data) {
  Sha256 digest;
  digest.update(data.data(), data.size());
  return digest.hex();
}

// Reads the members of one file; every complaint names the file and the member. A manifest is read once: what was
// verified is what is parsed, whatever happens to the file meanwhile.
class Loader {
 public:
  Loader(const std::string& path, const Access& access) : path_(path), file_(path) {
    try {
      members_ = read_container(file_, {kLibrary, kWeights, kManifest}, {kPacked, kSealedManifest, kSignature});
    } catch (const Malformed& error) {
      throw Failure(WHET_DAMAGED,
                    text_of(path, " is not a whole bundle: ", error.what(), ". Copy or save it again"));
    }
    manifest_text_ = manifest_text();
    const std::optional<Signature> signed_by = signature();
    if (access.trusted) check_signature(signed_by, manifest_text_, *access.trusted, path_);
    open(access.key);
  }

  Bundle bundle() {
    Bundle bundle;
    bundle.manifest = manifest();
    check_host(bundle.manifest.target, path_);
    bundle.library = library(bundle.manifest.members.at(kLibrary));
    check_library(bundle.library, bundle.manifest.target, path_);
    bundle.weights = weights(bundle.manifest.members.at(kWeights));
    if (members_.count(kPacked) != 0) packed(bundle.manifest.members.at(kPacked), bundle.weights);
    check_weights(bundle);
    return bundle;
  }

 private:
  Failure damaged(const std::string& member, const std::string& what) const {
    return {WHET_DAMAGED, text_of(path_, " is damaged: ", member, " ", what, ". Copy or save it again")};
  }

  // What `read` returns; where it finds something malformed, the member is damaged.
  template <typename Read>
  auto reading(const std::string& member, Read read) const {
    try {
      return read();
    } catch (const Malformed& error) {
      throw damaged(member, error.what());
    }
  }

  std::string manifest_text() const {
    const Stored& stored = members_.at(kManifest);
    if (stored.size > kManifestLimit) throw damaged(kManifest, text_of("claims ", stored.size, " bytes"));
    return reading(kManifest, [&] {
      std::string text = file_.read(stored.offset, static_cast<std::size_t>(stored.size));
      if (crc32(text.data(), text.size()) != stored.crc32) throw Malformed("does not have its checksum");
      return text;
    });
  }

  std::optional<Signature> signature() const {
    const auto found = members_.find(kSignature);
    if (found == members_.end()) return std::nullopt;
    return reading(kSignature, [&] {
      const Stored& stored = found->second;
      if (stored.size != kSignatureSize)
        throw Malformed(text_of("has ", stored.size, " bytes in place of ", kSignatureSize));
      const std::string text = file_.read(stored.offset, kSignatureSize);
      if (crc32(text.data(), text.size()) != stored.crc32) throw Malformed("does not have its checksum");
      return std::optional(parse_signature(text));
    });
  }

  // From here on the members are those of the ordinary bundle that an encrypted one holds.
  void open(const std::optional<Key>& key) {
    if (members_.count(kSealedManifest) == 0) {
      if (key) throw Failure(WHET_WRONG_KEY, text_of(path_, " is not encrypted, and a key was given: it takes none"));
      return;
    }
    const SealHeader header = reading(kManifest, [&] { return parse_seal_header(manifest_text_, path_); });
    check_members(header.members);
    if (!key)
      throw Failure(WHET_WRONG_KEY,
                    text_of(path_, " is encrypted with the key ", printable(header.key_id), ": give this key"));
    if (secret_key_id(*key) != header.key_id)
      throw Failure(WHET_WRONG_KEY, text_of(path_, " is encrypted with the key ", printable(header.key_id),
                                            "; the key given is ", secret_key_id(*key)));
    manifest_text_ = sealed_manifest(header, *key);
    Members sealed = members_;
    for (const std::string& name : {kManifest, kSealedManifest, kSignature}) sealed.erase(name);
    opened_ = reading("a member", [&] { return std::make_unique<OpenedFile>(file_, sealed, *key, header.salt); });
    source_ = opened_.get();
    members_ = opened_->members();
    members_[kManifest] = {};
    readable_target_ = header.target;
  }

  // It has the checksums of all other members before they were sealed: with its own checksum in the readable manifest,
  // whoever signed that has signed all of them.
  std::string sealed_manifest(const SealHeader& header, const Key& key) const {
    const Stored& stored = members_.at(kSealedManifest);
    if (stored.size > kManifestLimit) throw damaged(kSealedManifest, text_of("claims ", stored.size, " bytes"));
    return reading(kSealedManifest, [&] {
      const std::string sealed = file_.read(stored.offset, static_cast<std::size_t>(stored.size));
      if (hex_sha256(sealed) != header.members.at(kSealedManifest).sha256) throw Malformed(kNoChecksum);
      return open_sealed(MemberCipher(key, header.salt, kSealedManifest), sealed);
    });
  }

  Manifest manifest() const {
    Manifest found = reading(kManifest, [&] { return parse_manifest(manifest_text_, path_); });
    check_members(found.members);
    if (readable_target_ && !(found.target == *readable_target_))
      throw damaged(kSealedManifest, text_of("is for ", in_quotes(found.target.name),
                                             ", which its readable manifest does not say"));
    return found;
  }

  void check_members(const std::map<std::string, Member>& said) const {
    bool same = said.size() + 1 + members_.count(kSignature) == members_.size();
    for (const auto& [name, member] : said)
      same = same && name != kManifest && name != kSignature && members_.count(name) != 0;
    if (!same) throw damaged(kManifest, "describes other members");
    for (const auto& [name, member] : said)
      if (member.size != members_.at(name).size)
        throw damaged(name, text_of("has ", members_.at(name).size, " bytes, the manifest says ", member.size));
  }

  // A whole member, which has its checksum.
  std::string contents(const std::string& name, const Member& member) const {
    const Stored& stored = members_.at(name);
    return reading(name, [&] {
      std::string data = source_->read(stored.offset, static_cast<std::size_t>(stored.size));
      if (hex_sha256(data) != member.sha256) throw Malformed(kNoChecksum);
      return data;
    });
  }

  std::string library(const Member& member) const { return contents(kLibrary, member); }

  // Every tensor straight to its place in one block of memory. A mapped file would save this read, but a bundle
  // overwritten in place would then crash the running process.
  std::map<std::string, RawTensor> weights(const Member& member) const {
    const Stored& stored = members_.at(kWeights);
    return reading(kWeights, [&] {
      Sha256 digest;
      std::uint64_t position = stored.offset;
      const auto take = [&](void* place, std::uint64_t size) {
        source_->read(position, place, static_cast<std::size_t>(size));
        digest.update(place, static_cast<std::size_t>(size));
        position += size;
      };
      const std::vector<Entry> entries = safetensors(stored.size, take);
      std::uint64_t room = 0;
      for (const Entry& entry : entries) room += padded(entry.end - entry.begin);
      const Bytes block = aligned_bytes(room);
      std::map<std::string, RawTensor> found;
      std::uint64_t begin = 0;
      for (const Entry& entry : entries) {
        const Bytes place(block, block.get() + begin);
        take(place.get(), entry.end - entry.begin);
        found.insert_or_assign(entry.key, RawTensor{entry.element, entry.shape, place});
        begin += padded(entry.end - entry.begin);
      }
      if (digest.hex() != member.sha256) throw Malformed(kNoChecksum);
      return found;
    });
  }

  // Where the tensors of the weights file lie; `take` fills memory with what comes next in the file.
  template <typename Take>
  static std::vector<Entry> safetensors(std::uint64_t size, Take take) {
    unsigned char length[8] = {};
    take(length, std::min<std::uint64_t>(size, sizeof(length)));
    std::uint64_t header_size = 0;
    for (std::size_t i = sizeof(length); i-- > 0;) header_size = header_size << 8 | length[i];
    if (size < sizeof(length) || header_size > std::min(size - sizeof(length), kSafetensorsHeaderLimit))
      throw Malformed(text_of("claims a header of ", header_size, " bytes"));
    std::string header(static_cast<std::size_t>(header_size), '\0');
    take(header.data(), header_size);
    try {
      return decode_safetensors(header, size - sizeof(length) - header_size);
    } catch (const Malformed& error) {
      throw Malformed(text_of("is not a safetensors file (", error.what(), ")"));
    }
  }

  // The member is taken into memory, so that what is expanded is what has the checksum.
  void packed(const Member& member, std::map<std::string, RawTensor>& weights) const {
    const std::string data = contents(kPacked, member);
    if (!member.expanded) throw damaged(kManifest, text_of("does not say what ", kPacked, " expands to"));
    try {
      read_packed(MemoryFile(data), 0, data.size(), *member.expanded, weights);
    } catch (const Malformed& error) {
      throw damaged(kPacked, text_of("is not what it should be (", error.what(), ")"));
    } catch (const std::bad_alloc&) {
      throw Failure(WHET_NO_MEMORY, text_of(path_, ": there is no memory for the ", *member.expanded,
                                            " bytes that ", kPacked, " claims"));
    }
  }

  void check_weights(const Bundle& bundle) const {
    std::vector<std::string> keys = bundle.manifest.weights;
    for (const StateSpec& item : bundle.manifest.state) keys.push_back(item.weight);
    for (const std::string& key : keys)
      if (bundle.weights.count(key) == 0)
        throw Failure(WHET_DAMAGED,
                      text_of(path_, ": the weights have no ", in_quotes(key), ", which the manifest names"));
    for (const StateSpec& item : bundle.manifest.state) {
      const RawTensor& tensor = bundle.weights.at(item.weight);
      if (tensor.element == item.element && tensor.shape == item.shape) continue;
      throw Failure(WHET_DAMAGED,
                    text_of(path_, ": the initial value of the state ", in_quotes(item.name), " is ",
                            tensor.element->name, shape_text(tensor.shape), ", the manifest says ",
                            item.element->name, shape_text(item.shape)));
    }
  }

  std::string path_;
  File file_;
  Members members_;
  std::string manifest_text_;
  // Of an encrypted bundle: the members as they are opened, and what the readable manifest says.
  std::unique_ptr<OpenedFile> opened_;
  std::optional<TargetSpec> readable_target_;
  // Where the members lie.
  const Readable* source_ = &file_;
};

}  // namespace

Bundle read_bundle(const std::string& path, const Access& access) { return Loader(path, access).bundle(); }

}  // namespace whet::internal
