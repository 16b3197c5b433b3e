// Stands in for the CUDA backend in a build without it.
#include "backend/registry.h"
#include "core/status.h"

namespace at_moe {

namespace {
const char* const kReason = "this build of at-moe has no CUDA backend";
}

std::vector<DeviceDescription> describe_cuda() {
  DeviceDescription device;
  device.name = "cuda";
  device.description = "NVIDIA GPU";
  device.reason = kReason;
  return {device};
}

std::unique_ptr<Backend> create_cuda_backend(const BackendOptions&) { fail(Code::kDeviceUnavailable, kReason); }

}  // namespace at_moe
