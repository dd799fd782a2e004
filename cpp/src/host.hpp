// Whether a bundle's code can run here: architecture, operating system and processor features.
#pragma once

#include <string>

#include "manifest.hpp"

namespace whet::internal {

// Throws Failure(WHET_OTHER_DEVICE) unless code for `target` runs on this processor and operating system.
void check_host(const TargetSpec& target, const std::string& source);

// Throws Failure(WHET_DAMAGED) unless the library is whole and of the architecture that the manifest says: the
// system's own loader would let the process die of a library that is cut off.
void check_library(const std::string& library, const TargetSpec& target, const std::string& source);

}  // namespace whet::internal
