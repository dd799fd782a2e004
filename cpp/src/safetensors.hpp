// The header of a safetensors file (https://huggingface.co/docs/safetensors, "Format").
//
//     8 bytes   little-endian length N of the header
//     N bytes   JSON: {key: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
//     the rest  the tensors, without holes, little-endian, row-major
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "element.hpp"

namespace whet::internal {

// The format's own limit: a longer header is damage.
constexpr std::uint64_t kSafetensorsHeaderLimit = 100'000'000;

// Where one tensor lies: offsets in bytes from the end of the header.
struct Entry {
  std::string key;
  const Element* element;
  std::vector<std::int64_t> shape;
  std::uint64_t begin, end;
};

// The entries in the order of their data, checked against each other and the size of the data. Throws Malformed.
std::vector<Entry> decode_safetensors(const std::string& header, std::uint64_t data_size);

}  // namespace whet::internal
