// Weights in their stored form, expanded to exactly the same bytes: the member weights.packed of a bundle.
//
// A tensor is where its values lie, and the values, bit patterns both:
//
// positions   dense: everywhere; bitmap: one bit an element; gaps: the elements that are passed over before each value,
//             the largest symbol standing for as many elements without a value; what has no value is 0
// values      raw: as in memory; codebook: the distinct ones, and an index each
//
// Gaps and indices are symbols of 1 to 8 bits, packed, lowest bit first. Each of these streams is a part of one block,
// and a block is stored as it is or as one zstandard frame.
//
//     8 + 8 bytes   stored and expanded size of the header, little-endian
//     header        JSON {"tensors": [...], "blocks": [[method, stored size, size], ...]} in a zstandard frame
//     the rest      the blocks, without holes
//
// Every size is declared and held against all others before memory is taken for it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "file.hpp"
#include "memory.hpp"

namespace whet::internal {

// Add to `weights` the tensors of the packed member at file[offset : offset + size]; a tensor may be the same as one
// that is there already. `expanded` is what the manifest says that they take. Throws Malformed, std::bad_alloc.
void read_packed(const Readable& file, std::uint64_t offset, std::uint64_t size, std::uint64_t expanded,
                 std::map<std::string, RawTensor>& weights);

}  // namespace whet::internal
