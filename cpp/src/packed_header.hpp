// What the header of packed weights says: how each tensor is stored (see packed.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "element.hpp"

namespace whet::internal {

enum class Positions { kDense, kBitmap, kGaps };

// How one tensor is stored. `blocks` names the block of each of its streams; `same` a tensor equal to it.
struct PackedTensor {
  std::string key, dtype, same;
  std::vector<std::uint64_t> shape, blocks;
  Positions positions = Positions::kDense;
  std::uint64_t gaps = 0, gap_bits = 8, count = 0, entries = 0, index_bits = 8;
  // What follows from them, unless the tensor is the same as another.
  const Element* element = nullptr;
  std::uint64_t numel = 0, nbytes = 0;
  // Sizes of its streams: positions (unless dense), then values, or codebook and indices.
  std::vector<std::uint64_t> streams;
};

// Some streams, one after the other; `size` is that of the expanded bytes.
struct Block {
  bool compressed;
  std::uint64_t stored, size;
};

struct PackedHeader {
  std::vector<PackedTensor> tensors;
  std::vector<Block> blocks;
  // Bytes in memory of all tensors that are stored here.
  std::uint64_t nbytes = 0;
};

// Bytes of `count` symbols of that many bits; no overflow below 2^58 symbols.
constexpr std::uint64_t symbols_size(std::uint64_t count, std::uint64_t bits) { return (count * bits + 7) / 8; }

// Header of a member whose blocks take `data_size` bytes. Throws Malformed where its numbers disagree.
PackedHeader parse_packed_header(const std::string& text, std::uint64_t data_size);

}  // namespace whet::internal
