#include "bundle.hpp"

#include <algorithm>
#include <new>
#include <set>
#include <utility>

#include "checksum.hpp"
#include "container.hpp"
#include "failure.hpp"
#include "fat.hpp"
#include "host.hpp"
#include "packed.hpp"
#include "safetensors.hpp"

namespace whet::internal {
namespace {

const std::string kLibrary = "lib.so", kWeights = "weights.safetensors", kPacked = "weights.packed",
                  kManifest = "manifest.json";
constexpr std::uint64_t kManifestLimit = std::uint64_t{64} << 20;
constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
constexpr const char* kNoChecksum = "does not have its checksum (sha256)";

using Members = std::map<std::string, Stored>;

Failure damaged_member(const std::string& path, const std::string& member, const std::string& what) {
  return {WHET_DAMAGED, text_of(path, " is damaged: ", member, " ", what, ". Copy or save it again")};
}

// What `read` returns; where it finds something malformed, `what` is no whole bundle.
template <typename Read>
auto whole(const std::string& what, Read read) {
  try {
    return read();
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(what, " is not a whole bundle: ", error.what(), ". Copy or save it again"));
  }
}

// The text of the manifest, or of an index in its place. Throws Malformed.
std::string manifest_text(const File& file, const Stored& stored) {
  if (stored.size > kManifestLimit) throw Malformed(text_of("claims ", stored.size, " bytes"));
  std::string text = file.read(stored.offset, static_cast<std::size_t>(stored.size));
  if (crc32(text.data(), text.size()) != stored.crc32) throw Malformed("does not have its checksum");
  return text;
}

// Reads the members of one bundle; every complaint names the file and the member.
class Loader {
 public:
  Loader(std::string path, File file, Members members)
      : path_(std::move(path)), file_(std::move(file)), members_(std::move(members)), manifest_(manifest()) {}

  const TargetSpec& target() const { return manifest_.target; }

  Bundle bundle() {
    Bundle bundle;
    bundle.manifest = manifest_;
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
    return damaged_member(path_, member, what);
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

  Manifest manifest() const {
    Manifest found = reading(
        kManifest, [&] { return parse_manifest(manifest_text(file_, members_.at(kManifest)), path_); });
    bool same = found.members.size() + 1 == members_.size();
    for (const auto& [name, member] : found.members) same = same && name != kManifest && members_.count(name) != 0;
    if (!same) throw damaged(kManifest, "describes other members");
    for (const auto& [name, member] : found.members)
      if (member.size != members_.at(name).size)
        throw damaged(name, text_of("has ", members_.at(name).size, " bytes, the manifest says ", member.size));
    return found;
  }

  std::string library(const Member& member) const {
    const Stored& stored = members_.at(kLibrary);
    return reading(kLibrary, [&] {
      std::string data = file_.read(stored.offset, static_cast<std::size_t>(stored.size));
      Sha256 digest;
      digest.update(data.data(), data.size());
      if (digest.hex() != member.sha256) throw Malformed(kNoChecksum);
      return data;
    });
  }

  // Every tensor straight to its place in one block of memory. A mapped file would save this read, but a bundle
  // overwritten in place would then crash the running process.
  std::map<std::string, RawTensor> weights(const Member& member) const {
    const Stored& stored = members_.at(kWeights);
    return reading(kWeights, [&] {
      Sha256 digest;
      std::uint64_t position = stored.offset;
      const auto take = [&](void* place, std::uint64_t size) {
        file_.read(position, place, static_cast<std::size_t>(size));
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

  // The checksum is held against the whole member first: what is expanded is what was written.
  void packed(const Member& member, std::map<std::string, RawTensor>& weights) const {
    const Stored& stored = members_.at(kPacked);
    reading(kPacked, [&] {
      Sha256 digest;
      for (std::uint64_t done = 0; done < stored.size; done += kPiece) {
        const std::uint64_t size = std::min(kPiece, stored.size - done);
        const std::string piece = file_.read(stored.offset + done, static_cast<std::size_t>(size));
        digest.update(piece.data(), piece.size());
      }
      if (digest.hex() != member.sha256) throw Malformed(kNoChecksum);
    });
    if (!member.expanded) throw damaged(kManifest, text_of("does not say what ", kPacked, " expands to"));
    try {
      read_packed(file_, stored.offset, stored.size, *member.expanded, weights);
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
  Manifest manifest_;
};

// The members of one bundle, or an index and variants.
Members read_members(const File& file) {
  std::set<std::string> known = {kLibrary, kWeights, kPacked};
  known.insert(kVariants.begin(), kVariants.end());
  Members members = read_container(file, {kManifest}, known);
  std::size_t own = 0;
  for (const std::string& name : {kLibrary, kWeights, kPacked}) own += members.count(name);
  const bool fat = members.size() > own + 1;
  if (fat && own > 0) throw Malformed("it has members of one bundle and others of several");
  for (const std::string& name : {kLibrary, kWeights})
    if (!fat && members.count(name) == 0) throw Malformed(text_of("it has no member ", in_quotes(name)));
  return members;
}

// Of a fat bundle the best variant for this device; of the others nothing but their targets is read.
Loader variant_of(const std::string& path, const File& file, const Members& members) {
  std::set<std::string> names;
  for (const auto& [name, stored] : members)
    if (name != kManifest) names.insert(name);
  std::vector<TargetSpec> targets;
  try {
    targets = parse_index(manifest_text(file, members.at(kManifest)), names, path);
  } catch (const Malformed& error) {
    throw damaged_member(path, kManifest, error.what());
  }
  const std::size_t number = best_variant(targets, path);
  const std::string& name = kVariants[number];
  const Stored& stored = members.at(name);
  const auto [part, inside] = whole(text_of(path, ", variant ", in_quotes(targets[number].name), ","), [&] {
    File found = file.part(stored.offset, stored.size);
    Members of_it = read_container(found, {kLibrary, kWeights, kManifest}, {kPacked});
    return std::pair(std::move(found), std::move(of_it));
  });
  Loader loader(path, part, inside);
  if (!(loader.target() == targets[number]))
    throw damaged_member(path, name, text_of("is for ", in_quotes(loader.target().name),
                                             ", which its index does not say"));
  return loader;
}

}  // namespace

Bundle read_bundle(const std::string& path) {
  const File file(path);
  const Members members = whole(path, [&] { return read_members(file); });
  return (members.count(kLibrary) != 0 ? Loader(path, file, members) : variant_of(path, file, members)).bundle();
}

}  // namespace whet::internal
