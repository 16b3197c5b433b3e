#include "cuda/nvidia/context.h"

#include <array>
#include <cstdint>
#include <utility>

#include "core/status.h"

namespace at_moe::cuda {

namespace {

constexpr size_t kMostDevices = 64;

// What ended the context of each GPU; cudaSuccess while it lives.
std::array<std::atomic<cudaError_t>, kMostDevices> losses{};
thread_local int entered = 0;  // GPU of the calls that this thread makes

std::atomic<cudaError_t>& loss_of(int device) { return losses[static_cast<size_t>(device) % kMostDevices]; }

// Errors after which CUDA answers every call to the context with an error until the process ends.
bool ends_context(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

bool is_unavailable(cudaError_t error) {
  switch (error) {
    case cudaErrorInitializationError:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice: return true;
    default: return false;
  }
}

void note(cudaError_t error) noexcept {
  cudaError_t none = cudaSuccess;
  if (ends_context(error)) loss_of(entered).compare_exchange_strong(none, error);
}

std::string text_of(cudaError_t error) { return concat(cudaGetErrorName(error), ": ", cudaGetErrorString(error)); }

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  note(error);
  const std::string text = concat(what, ": ", text_of(error));
  if (ends_context(error)) fail(Code::kDeviceLost, "the GPU cuda:", entered, " was lost: ", text);
  if (error == cudaErrorMemoryAllocation) fail(Code::kOutOfMemory, "the GPU is out of memory: ", text);
  if (is_unavailable(error)) fail(Code::kDeviceUnavailable, "the GPU cuda:", entered, " cannot be used: ", text);
  fail(Code::kInternal, text);
}

Context::Context(int device, std::shared_ptr<std::atomic<size_t>> in_use)
    : device_(device), in_use_(std::move(in_use)) {
  enter();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  try {
    int pools = 0;
    check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device), "memory pools");
    if (!pools) return;
    check(cudaDeviceGetDefaultMemPool(&pool_, device), "the memory pool");
    // Memory stays with the process when it is released, until trim(): growing again costs no call to the driver.
    uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "the memory pool");
  } catch (...) {
    cudaStreamDestroy(stream_);
    throw;
  }
}

Context::~Context() {
  if (!enter_quietly()) return;
  note(cudaStreamSynchronize(stream_));
  note(cudaStreamDestroy(stream_));
  if (pool_) note(cudaMemPoolTrimTo(pool_, 0));
  cudaGetLastError();
}

void Context::enter() const {
  entered = device_;
  if (const cudaError_t loss = loss_of(device_); loss != cudaSuccess)
    fail(Code::kDeviceLost, "the GPU cuda:", device_, " was lost before (", text_of(loss), "); restart the process");
  check(cudaSetDevice(device_), "cudaSetDevice");
}

bool Context::enter_quietly() const noexcept {
  entered = device_;
  if (loss_of(device_) != cudaSuccess) return false;
  if (cudaSetDevice(device_) == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

void* Context::allocate(size_t bytes) {
  enter();
  void* data = nullptr;
  const size_t size = bytes ? bytes : 1;
  const cudaError_t error = pool_ ? cudaMallocFromPoolAsync(&data, size, pool_, stream_) : cudaMalloc(&data, size);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "cudaMalloc");
  *in_use_ += bytes;
  return data;
}

void* Context::allocate_host(size_t bytes) {
  enter();
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes ? bytes : 1, cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "cudaHostAlloc");
  return data;
}

void Context::release(void* data, size_t bytes) noexcept {
  *in_use_ -= bytes;
  if (!enter_quietly()) return;
  note(pool_ ? cudaFreeAsync(data, stream_) : cudaFree(data));
  cudaGetLastError();
}

void Context::release_host(void* data) noexcept {
  if (!enter_quietly()) return;
  note(cudaStreamSynchronize(stream_));  // copies may still read it
  note(cudaFreeHost(data));
  cudaGetLastError();
}

void Context::trim() {
  enter();
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
  if (pool_) check(cudaMemPoolTrimTo(pool_, 0), "the memory pool");
}

}  // namespace at_moe::cuda
