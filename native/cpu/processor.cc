#include "cpu/processor.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace at_moe {

namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The value after "key<blanks>:" in a /proc table.
std::string table_value(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.compare(0, key.size(), key) != 0 || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// Whole processors granted by the control group, or 0 for no limit.
int quota_cores() {
  double quota = 0, period = 0;
  std::ifstream unified("/sys/fs/cgroup/cpu.max");
  if (!(unified >> quota >> period)) {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(quota / period)) : 0;
}

#if defined(__linux__)
int64_t number_in(const char* path) {
  int64_t number = 0;
  std::ifstream(path) >> number;
  return number;
}

// A row of /proc/meminfo in bytes, 0 where there is none.
int64_t memory_row(const char* key) {
  const std::string kibibytes = table_value("/proc/meminfo", key);
  return kibibytes.empty() ? 0 : std::stoll(kibibytes) * 1024;
}

// The control group's files, of version 2 and of version 1.
constexpr struct {
  const char* limit;
  const char* used;
} kMemoryGroups[] = {
    {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
};
#endif

}  // namespace

int usable_cores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    std::set<std::string> physical;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (!CPU_ISSET(i, &allowed)) continue;
      const std::string siblings =
          first_line("/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/thread_siblings_list");
      physical.insert(siblings.empty() ? std::to_string(i) : siblings);
    }
    cores = std::max(1, static_cast<int>(physical.size()));
  }
  if (const int quota = quota_cores()) cores = std::min(cores, quota);
#elif defined(__APPLE__)
  size_t size = sizeof(cores);
  sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0);
#endif
  return cores;
}

int64_t usable_memory() {
  int64_t bytes = 0;
#if defined(__linux__)
  bytes = memory_row("MemTotal");
  for (const auto& group : kMemoryGroups) {
    if (const int64_t limit = number_in(group.limit); limit > 0) bytes = std::min(bytes, limit);
  }
#elif defined(__APPLE__)
  size_t size = sizeof(bytes);
  sysctlbyname("hw.memsize", &bytes, &size, nullptr, 0);
#endif
  return bytes;
}

int64_t free_memory() {
  int64_t bytes = -1;
#if defined(__linux__)
  bytes = memory_row("MemAvailable");
  for (const auto& group : kMemoryGroups) {
    const int64_t limit = number_in(group.limit);
    if (limit > 0) bytes = std::min(bytes, std::max<int64_t>(0, limit - number_in(group.used)));
  }
#endif
  return bytes;
}

std::string processor_name() {
#if defined(__APPLE__)
  char name[256] = "";
  size_t size = sizeof(name);
  sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0);
  return name;
#else
  const std::string name = table_value("/proc/cpuinfo", "model name");
  return name.empty() ? "CPU" : name;
#endif
}

}  // namespace at_moe
