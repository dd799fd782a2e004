#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "processor.hpp"

namespace whet::internal {
namespace {

// The first line of a file of the kernel; empty where it does not exist or may not be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<double> quota_of(const std::string& folder) {
  std::istringstream limit(first_line(folder + "/cpu.max"));
  double quota = 0, period = 0;
  if (limit >> quota >> period && period > 0) return quota / period;
  std::istringstream first(first_line(folder + "/cpu.cfs_quota_us")), second(first_line(folder + "/cpu.cfs_period_us"));
  if (first >> quota && second >> period && quota > 0 && period > 0) return quota / period;
  return std::nullopt;
}

// CPUs that the control group and those above it allow, versions 1 and 2; nothing for no limit. A container sees its
// own group as the root: the path named in /proc may not be there.
std::optional<double> cgroup_quota() {
  std::optional<double> least;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string base = controllers == ",," ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string group = line.substr(second + 1);; group.erase(group.rfind('/'))) {
      const auto quota = quota_of(base + group);
      if (quota && (!least || *quota < *least)) least = quota;
      if (group.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

}  // namespace

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::set<std::string> cores;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string name = std::to_string(cpu);
      const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list");
      cores.insert(siblings.empty() ? name : siblings);
    }
  const int count = std::max(1, static_cast<int>(cores.size()));
  const auto quota = cgroup_quota();
  return quota ? std::max(1, static_cast<int>(std::ceil(std::min(static_cast<double>(count), *quota)))) : count;
}

}  // namespace whet::internal
