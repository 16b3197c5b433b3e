#include "cpu/processor.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "core/control_group.h"
#include "core/status.h"

#include <pthread.h>
#include <unistd.h>
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

#if defined(__linux__)
// Of the process, whose first thread nobody here binds: the calling one may be bound.
bool process_affinity(cpu_set_t* allowed) { return sched_getaffinity(getpid(), sizeof(*allowed), allowed) == 0; }

std::vector<int> allowed_processors() {
  std::vector<int> processors;
  cpu_set_t allowed;
  if (!process_affinity(&allowed)) return processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &allowed)) processors.push_back(i);
  }
  return processors;
}

// A row of /proc/meminfo in bytes, 0 where there is none.
int64_t memory_row(const char* key) {
  const std::string kibibytes = table_value("/proc/meminfo", key);
  return kibibytes.empty() ? 0 : std::stoll(kibibytes) * 1024;
}
#endif

}  // namespace

int usable_processors() {
  int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  if (const std::vector<int> allowed = allowed_processors(); !allowed.empty())
    processors = static_cast<int>(allowed.size());
  if (const int quota = group_cores()) processors = std::min(processors, quota);
#endif
  return processors;
}

int usable_cores() {
  int cores = usable_processors();
#if defined(__linux__)
  std::set<std::string> physical;
  for (int i : allowed_processors()) {
    const std::string siblings =
        first_line("/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/thread_siblings_list");
    physical.insert(siblings.empty() ? std::to_string(i) : siblings);
  }
  if (!physical.empty()) cores = std::min(cores, static_cast<int>(physical.size()));
#elif defined(__APPLE__)
  size_t size = sizeof(cores);
  sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0);
#endif
  return cores;
}

void check_affinity([[maybe_unused]] const std::vector<int>& processors) {
#if defined(__linux__)
  const std::vector<int> allowed = allowed_processors();
  for (int processor : processors) {
    if (std::find(allowed.begin(), allowed.end(), processor) == allowed.end())
      fail(Code::kUnsupported, "affinity: this process may not run on processor ", processor);
  }
#else
  if (!processors.empty()) fail(Code::kUnsupported, "affinity: threads are bound to processors on Linux alone");
#endif
}

void bind_thread([[maybe_unused]] std::thread::native_handle_type thread, [[maybe_unused]] int processor) {
#if defined(__linux__)
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  pthread_setaffinity_np(thread, sizeof(one), &one);
#endif
}

std::thread::native_handle_type this_thread_handle() { return pthread_self(); }

void free_this_thread() {
#if defined(__linux__)
  cpu_set_t all;
  if (process_affinity(&all)) pthread_setaffinity_np(pthread_self(), sizeof(all), &all);
#endif
}

int64_t usable_memory() {
  int64_t bytes = 0;
#if defined(__linux__)
  bytes = memory_row("MemTotal");
  for (const MemoryGroup& group : memory_groups()) bytes = std::min(bytes, group.limit);
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
  for (const MemoryGroup& group : memory_groups()) {
    bytes = std::min(bytes, std::max<int64_t>(0, group.limit - group.used));
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
