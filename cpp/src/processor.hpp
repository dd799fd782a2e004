// The processor that this process runs on: architecture, features by LLVM's names, cores.
#pragma once

#include <set>
#include <string>

namespace whet::internal {

// "x86_64", "aarch64" or "arm"; what this library was compiled for is what it can load.
std::string host_arch();
// "linux" or "darwin".
std::string host_os();
// Features of this processor that the operating system lets programs use.
const std::set<std::string>& host_features();
// Cores that this process may use: hyper-threads of one core count once; affinity and cgroup quota are respected.
int physical_cores();

}  // namespace whet::internal
