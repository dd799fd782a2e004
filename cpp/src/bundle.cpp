#include "bundle.hpp"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "checksum.hpp"
#include "failure.hpp"
#include "host.hpp"
#include "packed.hpp"
#include "parts.hpp"
#include "safetensors.hpp"

namespace whet::internal {
namespace {

// Reads the members of one bundle.
class Loader {
 public:
  explicit Loader(Part part) : part_(std::move(part)) {}

  Bundle bundle() const {
    Bundle bundle;
    bundle.manifest = part_.parsed();
    check_host(bundle.manifest.target, part_.source);
    bundle.library = library(bundle.manifest.members.at(kLibrary));
    check_library(bundle.library, bundle.manifest.target, part_.source);
    bundle.weights = weights(bundle.manifest.members.at(kWeights));
    if (part_.members.count(kPacked) != 0) packed(bundle.manifest.members.at(kPacked), bundle.weights);
    check_weights(bundle);
    return bundle;
  }

 private:
  // A whole member, which has its checksum.
  std::string contents(const std::string& name, const Member& member) const {
    const Stored& stored = part_.members.at(name);
    return part_.reading(name, [&] {
      std::string data = part_.file->read(stored.offset, static_cast<std::size_t>(stored.size));
      if (hex_sha256(data) != member.sha256) throw Malformed(kNoChecksum);
      return data;
    });
  }

  std::string library(const Member& member) const { return contents(kLibrary, member); }

  // Every tensor straight to its place in one block of memory. A mapped file would save this read, but a bundle
  // overwritten in place would then crash the running process.
  std::map<std::string, RawTensor> weights(const Member& member) const {
    const Stored& stored = part_.members.at(kWeights);
    return part_.reading(kWeights, [&] {
      Sha256 digest;
      std::uint64_t position = stored.offset;
      const auto take = [&](void* place, std::uint64_t size) {
        part_.file->read(position, place, static_cast<std::size_t>(size));
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
    if (!member.expanded) throw part_.damaged(kManifest, text_of("does not say what ", kPacked, " expands to"));
    try {
      read_packed(MemoryFile(data), 0, data.size(), *member.expanded, weights);
    } catch (const Malformed& error) {
      throw part_.damaged(kPacked, text_of("is not what it should be (", error.what(), ")"));
    } catch (const std::bad_alloc&) {
      throw Failure(WHET_NO_MEMORY, text_of(part_.source, ": there is no memory for the ", *member.expanded,
                                            " bytes that ", kPacked, " claims"));
    }
  }

  void check_weights(const Bundle& bundle) const {
    std::vector<std::string> keys = bundle.manifest.weights;
    for (const StateSpec& item : bundle.manifest.state) keys.push_back(item.weight);
    for (const std::string& key : keys)
      if (bundle.weights.count(key) == 0)
        throw Failure(WHET_DAMAGED,
                      text_of(part_.source, ": the weights have no ", in_quotes(key), ", which the manifest names"));
    for (const StateSpec& item : bundle.manifest.state) {
      const RawTensor& tensor = bundle.weights.at(item.weight);
      if (tensor.element == item.element && tensor.shape == item.shape) continue;
      throw Failure(WHET_DAMAGED,
                    text_of(part_.source, ": the initial value of the state ", in_quotes(item.name), " is ",
                            tensor.element->name, shape_text(tensor.shape), ", the manifest says ",
                            item.element->name, shape_text(item.shape)));
    }
  }

  Part part_;
};

}  // namespace

Bundle read_bundle(const std::string& path, const Access& access) { return Loader(open_part(path, access)).bundle(); }

}  // namespace whet::internal
