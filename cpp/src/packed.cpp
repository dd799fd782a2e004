#include "packed.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <unistd.h>
#include <vector>
#include <zstd.h>

#include "failure.hpp"
#include "packed_header.hpp"

namespace whet::internal {
namespace {

constexpr std::uint64_t kHeaderSizes = 16;
constexpr std::uint64_t kHeaderLimit = std::uint64_t{64} << 20;
// A frame may look back 1 MiB: a decoder takes no more than that beside its result.
constexpr int kWindowLog = 20;

std::uint64_t device_memory() {
  return static_cast<std::uint64_t>(sysconf(_SC_PAGE_SIZE)) * static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES));
}

// Expand one frame to exactly `size` bytes at `place`.
void decompress(const std::string& data, std::uint8_t* place, std::uint64_t size) {
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> decoder(ZSTD_createDCtx(), ZSTD_freeDCtx);
  if (!decoder) throw std::bad_alloc();
  ZSTD_DCtx_setParameter(decoder.get(), ZSTD_d_windowLogMax, kWindowLog);
  ZSTD_inBuffer input = {data.data(), data.size(), 0};
  ZSTD_outBuffer output = {place, static_cast<std::size_t>(size), 0};
  std::uint8_t beyond = 0;
  ZSTD_outBuffer rest = {&beyond, 1, 0};
  bool ended = data.empty();
  while (!ended && rest.pos == 0) {
    ZSTD_outBuffer& next = output.pos < output.size ? output : rest;
    const std::size_t read_before = input.pos, written_before = next.pos;
    const std::size_t hint = ZSTD_decompressStream(decoder.get(), &next, &input);
    if (ZSTD_isError(hint) != 0)
      throw Malformed(text_of("a block is not a zstandard frame (", ZSTD_getErrorName(hint), ")"));
    ended = hint == 0 || (input.pos == read_before && next.pos == written_before);
  }
  if (output.pos != size) throw Malformed(text_of("a block has ", output.pos, " bytes in place of ", size));
  if (rest.pos != 0) throw Malformed(text_of("a block has more than its ", size, " bytes"));
}

std::uint64_t little_endian(const std::string& bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = at + 8; i-- > at;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

struct Contents {
  PackedHeader header;
  std::uint64_t blocks_at;
};

Contents read_header(const Readable& file, std::uint64_t offset, std::uint64_t size) {
  if (size < kHeaderSizes) throw Malformed("ends too early");
  const std::string sizes = file.read(offset, kHeaderSizes);
  const std::uint64_t stored = little_endian(sizes, 0), length = little_endian(sizes, 8);
  if (stored > size - kHeaderSizes || length > kHeaderLimit)
    throw Malformed(text_of("claims a header of ", stored, " bytes for ", length));
  std::string text(static_cast<std::size_t>(length), '\0');
  decompress(file.read(offset + kHeaderSizes, static_cast<std::size_t>(stored)),
             reinterpret_cast<std::uint8_t*>(text.data()), length);
  return {parse_packed_header(text, size - kHeaderSizes - stored), offset + kHeaderSizes + stored};
}

// Expands a block when a stream of it is asked for, and lets go of it after the last one.
class Blocks {
 public:
  Blocks(const Readable& file, std::uint64_t start, const std::vector<Block>& blocks)
      : file_(file), blocks_(blocks), held_(blocks.size()), taken_(blocks.size()) {
    for (const Block& block : blocks) {
      starts_.push_back(start);
      start += block.stored;
    }
  }

  std::uint64_t size(std::uint64_t number) const { return blocks_[number].size; }

  // Expand a block that is one stream straight to its place.
  void whole(std::uint64_t number, std::uint8_t* place) const {
    const Block& block = blocks_[number];
    if (!block.compressed) {
      file_.read(starts_[number], place, static_cast<std::size_t>(block.size));
      return;
    }
    decompress(file_.read(starts_[number], static_cast<std::size_t>(block.stored)), place, block.size);
  }

  // The next `size` bytes of a block; they share its memory.
  Bytes take(std::uint64_t number, std::uint64_t size) {
    if (size == 0) return aligned_bytes(0);
    if (!held_[number]) {
      Bytes expanded = aligned_bytes(blocks_[number].size);
      whole(number, expanded.get());
      held_[number] = std::move(expanded);
    }
    Bytes stream(held_[number], held_[number].get() + taken_[number]);
    taken_[number] += size;
    if (taken_[number] == blocks_[number].size) held_[number].reset();
    return stream;
  }

 private:
  const Readable& file_;
  const std::vector<Block>& blocks_;
  std::vector<std::uint64_t> starts_;
  std::vector<Bytes> held_;
  std::vector<std::uint64_t> taken_;
};

// Symbols of 1 to 8 bits, one after the other, lowest bit first.
class Symbols {
 public:
  Symbols(const std::uint8_t* stream, std::uint64_t bits)
      : next_(stream), bits_(static_cast<unsigned>(bits)), mask_((1U << bits_) - 1) {}

  unsigned next() {
    if (held_ < bits_) {
      word_ |= static_cast<unsigned>(*next_++) << held_;
      held_ += 8;
    }
    const unsigned symbol = word_ & mask_;
    word_ >>= bits_;
    held_ -= bits_;
    return symbol;
  }

 private:
  const std::uint8_t* next_;
  unsigned bits_, mask_;
  unsigned word_ = 0, held_ = 0;
};

[[noreturn]] void wrong_count(const PackedTensor& tensor) {
  throw Malformed(text_of(in_quotes(tensor.key), " has ", tensor.count, " values for other positions"));
}

// The values of a tensor, one after the other: as they are, or out of its codebook.
class Values {
 public:
  Values(const PackedTensor& tensor, Bytes table, Bytes indices)
      : tensor_(tensor),
        table_(std::move(table)),
        indices_(std::move(indices)),
        symbols_(indices_.get(), tensor.index_bits) {}

  void put(std::uint8_t* element) {
    if (done_ == tensor_.count) wrong_count(tensor_);
    std::uint64_t place = done_++;
    if (tensor_.entries != 0) {
      place = symbols_.next();
      if (place >= tensor_.entries)
        throw Malformed(text_of(in_quotes(tensor_.key), " has an index beyond its codebook"));
    }
    const std::size_t bytes = tensor_.element->bytes;
    std::memcpy(element, table_.get() + place * bytes, bytes);
  }

  bool all_taken() const { return done_ == tensor_.count; }

 private:
  const PackedTensor& tensor_;
  Bytes table_, indices_;
  Symbols symbols_;
  std::uint64_t done_ = 0;
};

void place_dense(const PackedTensor& tensor, Values& values, std::uint8_t* data) {
  for (std::uint64_t i = 0; i < tensor.numel; ++i) values.put(data + i * tensor.element->bytes);
}

void place_by_bitmap(const PackedTensor& tensor, const Bytes& bitmap, Values& values, std::uint8_t* data) {
  Symbols kept(bitmap.get(), 1);
  for (std::uint64_t i = 0; i < tensor.numel; ++i)
    if (kept.next() != 0) values.put(data + i * tensor.element->bytes);
}

void place_by_gaps(const PackedTensor& tensor, const Bytes& gaps, Values& values, std::uint8_t* data) {
  Symbols passed(gaps.get(), tensor.gap_bits);
  const unsigned escape = (1U << tensor.gap_bits) - 1;
  std::uint64_t position = 0;
  for (std::uint64_t i = 0; i < tensor.gaps; ++i) {
    const unsigned symbol = passed.next();
    position += symbol;
    if (symbol == escape) continue;
    if (position >= tensor.numel) throw Malformed(text_of(in_quotes(tensor.key), " has a value beyond its end"));
    values.put(data + position++ * tensor.element->bytes);
  }
}

// Write the bytes of one tensor.
void fill(const PackedTensor& tensor, Blocks& blocks, std::uint8_t* place) {
  if (tensor.streams.size() == 1 && blocks.size(tensor.blocks[0]) == tensor.nbytes) {
    blocks.whole(tensor.blocks[0], place);
    return;
  }
  std::vector<Bytes> parts;
  for (std::size_t i = 0; i < tensor.streams.size(); ++i)
    parts.push_back(blocks.take(tensor.blocks[i], tensor.streams[i]));
  const std::size_t first = tensor.positions == Positions::kDense ? 0 : 1;
  Values values(tensor, parts[first], tensor.entries != 0 ? parts[first + 1] : Bytes());
  if (tensor.positions == Positions::kDense) {
    place_dense(tensor, values, place);
    return;
  }
  std::memset(place, 0, static_cast<std::size_t>(tensor.nbytes));
  (tensor.positions == Positions::kBitmap ? place_by_bitmap : place_by_gaps)(tensor, parts[0], values, place);
  if (!values.all_taken()) wrong_count(tensor);
}

}  // namespace

void read_packed(const Readable& file, std::uint64_t offset, std::uint64_t size, std::uint64_t expanded,
                 std::map<std::string, RawTensor>& weights) {
  const auto [header, start] = read_header(file, offset, size);
  if (header.nbytes != expanded)
    throw Malformed(text_of("claims ", header.nbytes, " bytes of weights, the manifest says ", expanded));
  if (expanded > device_memory())
    throw Malformed(
        text_of("claims ", expanded, " bytes of weights; this device has ", device_memory(), " bytes of memory"));
  Blocks blocks(file, start, header.blocks);
  std::map<std::string, RawTensor> found;
  for (const PackedTensor& tensor : header.tensors) {
    if (!tensor.same.empty()) continue;
    RawTensor raw = {tensor.element, {tensor.shape.begin(), tensor.shape.end()}, aligned_bytes(tensor.nbytes)};
    fill(tensor, blocks, raw.data.get());
    found.emplace(tensor.key, std::move(raw));
  }
  for (const PackedTensor& tensor : header.tensors) {
    if (tensor.same.empty()) continue;
    const auto packed = found.find(tensor.same), plain = weights.find(tensor.same);
    const RawTensor* twin = packed != found.end() ? &packed->second : plain != weights.end() ? &plain->second : nullptr;
    if (twin == nullptr || twin->element->name != tensor.dtype ||
        !std::equal(twin->shape.begin(), twin->shape.end(), tensor.shape.begin(), tensor.shape.end(),
                    [](std::int64_t a, std::uint64_t b) { return static_cast<std::uint64_t>(a) == b; }))
      throw Malformed(text_of(in_quotes(tensor.key), " is said to be the same as ", in_quotes(tensor.same)));
    found.emplace(tensor.key, *twin);
  }
  for (auto& [key, raw] : found) weights.insert_or_assign(key, std::move(raw));
}

}  // namespace whet::internal
