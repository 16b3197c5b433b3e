// What the machine offers to this process.
#pragma once

#include <cstdint>
#include <string>

namespace at_moe {

int usable_cores();       // physical cores, within the scheduling affinity and the cgroup's quota
int64_t usable_memory();  // bytes, within the cgroup's limit
int64_t free_memory();    // bytes of them that can still be had; -1 where the system does not say
std::string processor_name();

}  // namespace at_moe
