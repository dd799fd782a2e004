// The inputs of a call, held against what the model takes.
#pragma once

#include <cstddef>

#include "manifest.hpp"

namespace whet::internal {

// Throws Failure(WHET_BAD_INPUT) that names the input, what it is, and what the model wants.
void check_inputs(const Manifest& manifest, const whet_tensor* inputs, std::size_t count);

}  // namespace whet::internal
