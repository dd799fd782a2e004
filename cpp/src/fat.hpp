// Fat bundles: the same model compiled for several targets in one file, of which the best for a device is taken.
//
// A fat bundle is a container of whole bundles, 0.whet, 1.whet, ..., and an index of their targets.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace whet::internal {

// Names of the members: at most 16.
extern const std::vector<std::string> kVariants;

// The targets of the variants `members`, in their order. Throws Malformed where the text is no JSON,
// Failure(WHET_NEWER_FORMAT), and Failure(WHET_DAMAGED) where it is no index of these.
std::vector<TargetSpec> parse_index(const std::string& text, const std::set<std::string>& members,
                                    const std::string& source);

// The one whose code uses most of what this processor has. Throws Failure(WHET_OTHER_DEVICE) where none runs here.
std::size_t best_variant(const std::vector<TargetSpec>& targets, const std::string& source);

}  // namespace whet::internal
