// What the machine offers to this process.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace at_moe {

int usable_processors();  // logical ones, within the same bounds
int usable_cores();       // physical cores, within the affinity and the control groups' quotas
int64_t usable_memory();  // bytes, within the control groups' limits
int64_t free_memory();    // bytes of them that can still be had; -1 where the system does not say
std::string processor_name();
// Each thread on its own processor, round about. Fails with kUnsupported where the system has no such call, or does not let
// this process run on one of them; before any thread is bound.
void check_affinity(const std::vector<int>& processors);
void bind_thread(std::thread::native_handle_type thread, int processor);
std::thread::native_handle_type this_thread_handle();
void free_this_thread();  // takes off a binding that the calling thread inherited from the one that started it

}  // namespace at_moe
