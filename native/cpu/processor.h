// What the machine offers to this process.
#pragma once

#include <cstdint>
#include <string>

namespace at_moe {

int usable_cores();       // physical cores, within the scheduling affinity and the cgroup's quota
int64_t usable_memory();  // bytes, within the cgroup's limit
std::string processor_name();

}  // namespace at_moe
