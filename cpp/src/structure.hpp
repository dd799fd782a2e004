// Structures of inputs and outputs: nested tuples, lists, dicts and records over a flat list of leaves.
//
// C and C++ take and give the flat list; the structures are only checked, as in every other reader of bundles.
#pragma once

#include <cstddef>

#include "json.hpp"

namespace whet::internal {

// Throws Malformed unless `spec` is a structure whose leaves have the indices 0 .. leaves-1.
void check_structure(const Json& spec, std::size_t leaves);

}  // namespace whet::internal
