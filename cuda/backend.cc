#include "cuda/backend.h"

#include <cstring>

#include "core/status.h"
#include "cuda/kv.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

CudaBackend::CudaBackend(std::unique_ptr<Runtime> runtime, DType activation)
    : runtime_(std::move(runtime)),
      activation_(activation),
      staging_host_(runtime_->allocate_host(kStagingBytes)),
      staging_device_(runtime_->allocate(kStagingBytes)),
      uses_wgmma_(finds_wgmma()) {}

void CudaBackend::reserve(const StepCapacity&) {}

const void* CudaBackend::stage_bytes(const void* host, size_t bytes) {
  constexpr size_t kAlign = alignof(TensorMap);
  require(bytes <= kStagingBytes, "an op stages ", bytes, " bytes at once");
  if (staged_ + bytes > kStagingBytes) {
    runtime_->synchronize();  // kernels may still read what lies there
    staged_ = 0;
  }
  char* to = staging_device_.as<char>() + staged_;
  char* from = staging_host_.as<char>() + staged_;
  staged_ = (staged_ + bytes + kAlign - 1) / kAlign * kAlign;
  if (bytes == 0) return to;
  std::memcpy(from, host, bytes);
  runtime_->upload_async(to, from, bytes);
  return to;
}

void* CudaBackend::grow(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) {
    runtime_->synchronize();
    buffer = Buffer();
    buffer = runtime_->allocate(bytes + bytes / 4);
  }
  return buffer.as<void>();
}

std::unique_ptr<Weight> CudaBackend::create_weight(int64_t rows, int64_t cols, DType) {
  const size_t bytes = CudaWeight::bytes(rows, cols, activation_);
  Buffer memory = runtime_->allocate(bytes);
  runtime_->zero(memory.as<void>(), bytes);
  return std::make_unique<CudaWeight>(rows, cols, activation_, std::move(memory));
}

std::unique_ptr<KvPool> CudaBackend::create_kv(const KvPool::Shape& shape) {
  return std::make_unique<CudaKvPool>(shape, activation_, runtime_->allocate(CudaKvPool::bytes(shape, activation_)));
}

size_t CudaBackend::kv_bytes(const KvPool::Shape& shape) const { return CudaKvPool::bytes(shape, activation_); }

}  // namespace at_moe::cuda
