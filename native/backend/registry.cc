#include "backend/registry.h"

#include "core/status.h"

namespace at_moe {

std::vector<DeviceDescription> describe_devices() {
  std::vector<DeviceDescription> all = describe_cpu();
  for (DeviceDescription& device : describe_cuda()) all.push_back(std::move(device));
  return all;
}

std::unique_ptr<Backend> create_backend(const std::string& device, const BackendOptions& options) {
  if (device == "cpu") return create_cpu_backend(options);
  if (device == "emulated") return create_emulated_backend(options);
  std::string reason = "no GPU";
  for (const DeviceDescription& gpu : describe_cuda()) {
    if (gpu.available) return create_cuda_backend(options);
    reason = gpu.reason;
  }
  if (device == "auto") return create_cpu_backend(options);
  fail(Code::kDeviceUnavailable, "device '", device, "' is not available: ", reason);
}

}  // namespace at_moe
