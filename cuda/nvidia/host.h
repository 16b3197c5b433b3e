// The part of the platform that host code needs, for a C++ compiler.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace at_moe::cuda {

using Stream = cudaStream_t;

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// Fails with kDeviceLost when the context cannot be used any more: from then on every call to that device does. Else with
// kOutOfMemory, with kDeviceUnavailable where the device or its driver cannot serve this build, or with kInternal.
void check(cudaError_t error, const char* what);

}  // namespace at_moe::cuda
