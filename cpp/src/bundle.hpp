// One file that runs on a device: manifest, shared library and weights in a zip of stored members.
#pragma once

#include <map>
#include <string>

#include "keys.hpp"
#include "manifest.hpp"
#include "memory.hpp"

namespace whet::internal {

// A bundle that was read and found sound: nothing of it has been executed.
struct Bundle {
  Manifest manifest;
  std::string library;
  std::map<std::string, RawTensor> weights;
};

// Read and check the whole bundle for this device; load nothing, write nothing. The signature is checked first, where
// keys are trusted. Throws Failure.
Bundle read_bundle(const std::string& path, const Access& access);

}  // namespace whet::internal
