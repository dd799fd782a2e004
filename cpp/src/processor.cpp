#include "processor.hpp"

namespace whet::internal {

std::string host_arch() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#elif defined(__arm__)
  return "arm";
#else
#error "Whet's bundles run on x86-64 and ARM"
#endif
}

std::string host_os() {
#if defined(__linux__)
  return "linux";
#else
#error "the C++ runtime runs on Linux"
#endif
}

}  // namespace whet::internal
