#include "core/control_group.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "core/status.h"

namespace at_moe {

namespace {

bool lists(const std::string& controllers, const std::string& wanted) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == wanted) return true;
  }
  return false;
}

// The folder of a group and those of the groups around it, up to where the hierarchy is mounted. A path that begins above
// the mount, as one seen from another namespace does, leaves only the mount itself.
void add_folders(const std::string& mount, std::string path, std::vector<std::string>& folders) {
  if (path.find("/..") != std::string::npos) path.clear();
  while (!path.empty() && path.back() == '/') path.pop_back();
  for (;;) {
    folders.push_back(mount + path);
    if (path.empty()) return;
    path.erase(path.rfind('/'));
  }
}

struct Folders {
  std::vector<std::string> unified, legacy;  // version 2, version 1
};

Folders folders_of(const std::string& root, const std::string& controller) {
  const std::string mounts = root + "/sys/fs/cgroup";
  Folders found;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // number:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      add_folders(mounts, path, found.unified);
    } else if (lists(controllers, controller)) {
      const auto of = [&](const std::string& name) { add_folders(concat(mounts, "/", name), path, found.legacy); };
      of(controllers);
      if (controllers != controller) of(controller);
    }
  }
  return found;
}

// The first number of a file; `fallback` without one, as for "max".
double number_in(const std::string& path, double fallback) {
  double number = 0;
  return std::ifstream(path) >> number ? number : fallback;
}

}  // namespace

int group_cores(const std::string& root) {
  double least = 0;
  const auto add = [&least](double quota, double period) {
    if (quota > 0 && period > 0 && (least == 0 || quota / period < least)) least = quota / period;
  };
  const Folders folders = folders_of(root, "cpu");
  for (const std::string& folder : folders.unified) {
    double quota = 0, period = 0;
    if (std::ifstream(folder + "/cpu.max") >> quota >> period) add(quota, period);
  }
  for (const std::string& folder : folders.legacy) {
    add(number_in(folder + "/cpu.cfs_quota_us", 0), number_in(folder + "/cpu.cfs_period_us", 0));
  }
  return least > 0 ? std::max(1, static_cast<int>(least)) : 0;
}

std::vector<MemoryGroup> memory_groups(const std::string& root) {
  std::vector<MemoryGroup> groups;
  const auto add = [&groups](const std::string& limit, const std::string& used) {
    const double bytes = number_in(limit, 0);
    // Version 1 writes no limit as a number near 2^63.
    if (bytes > 0 && bytes < 0x1p62) {
      groups.push_back({static_cast<int64_t>(bytes), static_cast<int64_t>(number_in(used, 0))});
    }
  };
  const Folders folders = folders_of(root, "memory");
  for (const std::string& folder : folders.unified) add(folder + "/memory.max", folder + "/memory.current");
  for (const std::string& folder : folders.legacy) {
    add(folder + "/memory.limit_in_bytes", folder + "/memory.usage_in_bytes");
  }
  return groups;
}

}  // namespace at_moe
