// Each device is known by one factory function. A device that was not built is a stub object file whose factory fails and
// whose description says why.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace at_moe {

struct DeviceDescription {
  std::string name;         // "cpu", "cuda:0"
  std::string description;  // processor or GPU name
  int64_t memory_bytes = 0;
  bool available = false;
  std::string reason;  // why not available
};

struct BackendOptions {
  int threads = 0;              // CPU: 0 = physical cores
  std::vector<int> affinity{};  // CPU: processors that threads are bound to, round about; the calling one is the first
  DType activation = DType::f32;  // GPU: of activations, weights and the KV cache; the CPU computes in f32
  int gpu = 0;                    // GPU: N of "cuda:N"
  size_t memory_budget = 0;       // GPU: most bytes to allocate there, 0 = all
};

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options);
std::vector<DeviceDescription> describe_cpu();

// Threads of this process's CPU backends: those that work or spin, and the processors there are for them; how often one
// parked because there were too few, and was woken; and tasks that a thread did of those given to another.
struct ThreadCensus {
  int awake = 0, processors = 0;
  int64_t made_room = 0, woken = 0, taken = 0;
};
ThreadCensus count_cpu_threads();
const char* cpu_packed_layout();  // names what Weight::host_bytes holds
std::unique_ptr<Backend> create_cuda_backend(const BackendOptions& options);
std::vector<DeviceDescription> describe_cuda();
std::unique_ptr<Backend> create_emulated_backend(const BackendOptions& options);

// device: "cpu", "cuda" (the first GPU that can be used), "cuda:N", "auto" (cuda when one is available, else cpu), "emulated"
// (CUDA kernels on the CPU, for tests). Fails with kDeviceUnavailable and the reason.
std::unique_ptr<Backend> create_backend(const std::string& device, BackendOptions options);
std::vector<DeviceDescription> describe_devices();

}  // namespace at_moe
