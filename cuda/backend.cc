#include "cuda/backend.h"

#include <cstring>

#include "core/status.h"
#include "cuda/kv.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

CudaBackend::CudaBackend(std::unique_ptr<Runtime> runtime, DType activation)
    : runtime_(std::move(runtime)),
      activation_(activation),
      staging_(*runtime_),
      commands_(*runtime_, staging_, activation, work_),
      uses_wgmma_(finds_wgmma()) {}

void CudaBackend::reserve(const StepCapacity&) {}

void CudaBackend::synchronize() {
  commands_.flush();
  runtime_->synchronize();
}

Buffer CudaBackend::allocate(size_t bytes) {
  const auto memory = std::make_shared<Buffer>(runtime_->allocate(bytes));
  const auto release = [memory, released = commands_.released()](void*, size_t) { released->take(std::move(*memory)); };
  return meter_.count(Buffer(memory->as<void>(), bytes, release));
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes <= kJoiningBytes) return commands_.upload(device, host, bytes);
  commands_.flush();
  ++work_.uploads;
  runtime_->upload(device, host, bytes);
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  commands_.flush();
  ++work_.downloads;
  runtime_->download(host, device, bytes);
}

void CudaBackend::copy(void* to, const void* from, size_t bytes) {
  commands_.flush();
  runtime_->copy(to, from, bytes);
}

void CudaBackend::zero(void* device, size_t bytes) {
  commands_.flush();
  runtime_->zero(device, bytes);
}

const void* CudaBackend::stage_bytes(const void* host, size_t bytes) {
  const Staging::Place place = staging_.take(bytes);
  if (bytes == 0) return place.device;
  std::memcpy(place.host, host, bytes);
  ++work_.uploads;
  runtime_->upload_async(place.device, place.host, bytes);
  return place.device;
}

void* CudaBackend::grow(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) {
    synchronize();
    buffer = Buffer();
    buffer = runtime_->allocate(bytes + bytes / 4);
  }
  return buffer.as<void>();
}

std::unique_ptr<Weight> CudaBackend::create_weight(int64_t rows, int64_t cols, Storage storage) {
  return make_weight(rows, cols, held_as(storage));
}

std::unique_ptr<Weight> CudaBackend::create_router_weight(int64_t rows, int64_t cols) {
  return make_weight(rows, cols, Storage::f32);
}

size_t CudaBackend::weight_bytes(int64_t rows, int64_t cols, Storage storage) const {
  return CudaWeight::bytes(rows, cols, held_as(storage));
}

size_t CudaBackend::router_weight_bytes(int64_t rows, int64_t cols) const {
  return CudaWeight::bytes(rows, cols, Storage::f32);
}

std::unique_ptr<Weight> CudaBackend::make_weight(int64_t rows, int64_t cols, Storage storage) {
  const size_t bytes = CudaWeight::bytes(rows, cols, storage);
  Buffer memory = allocate(bytes);
  zero(memory.as<void>(), bytes);
  return std::make_unique<CudaWeight>(rows, cols, storage, std::move(memory));
}

std::unique_ptr<KvPool> CudaBackend::create_kv(const KvPool::Shape& shape) {
  return std::make_unique<CudaKvPool>(shape, activation_, allocate(CudaKvPool::bytes(shape, activation_)));
}

size_t CudaBackend::kv_bytes(const KvPool::Shape& shape) const { return CudaKvPool::bytes(shape, activation_); }

}  // namespace at_moe::cuda
