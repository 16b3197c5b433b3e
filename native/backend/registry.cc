#include "backend/registry.h"

#include "core/status.h"

namespace at_moe {

std::vector<DeviceDescription> describe_devices() {
  std::vector<DeviceDescription> all = describe_cpu();
  for (DeviceDescription& device : describe_cuda()) all.push_back(std::move(device));
  return all;
}

std::unique_ptr<Backend> create_backend(const std::string& device, BackendOptions options) {
  if (device == "cpu") return create_cpu_backend(options);
  if (device == "emulated") return create_emulated_backend(options);
  const bool any = device == "auto" || device == "cuda";
  std::string reason;
  const std::vector<DeviceDescription> gpus = describe_cuda();
  for (size_t i = 0; i < gpus.size(); ++i) {
    const bool wanted = any || gpus[i].name == device;
    if (wanted && gpus[i].available) {
      options.gpu = static_cast<int>(i);
      return create_cuda_backend(options);
    }
    if (reason.empty() && !gpus[i].reason.empty() && (wanted || gpus.size() == 1)) reason = gpus[i].reason;
  }
  if (device == "auto") return create_cpu_backend(options);
  fail(Code::kDeviceUnavailable, "device '", device,
       "' is not available: ", reason.empty() ? "no such device" : reason);
}

}  // namespace at_moe
