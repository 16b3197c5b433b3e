// Limits that Linux control groups, of version 1 and 2, set this process: those of its group and of all groups around it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace at_moe {

// `root` stands before /proc and /sys; empty for the system's own.
int group_cores(const std::string& root = "");  // whole processors of the least quota, at least 1; 0 without a quota

struct MemoryGroup {
  int64_t limit = 0, used = 0;  // bytes
};
std::vector<MemoryGroup> memory_groups(const std::string& root = "");  // those that have a limit

}  // namespace at_moe
