// The Runtime on an NVIDIA GPU: one stream, memory from the device's pool, uploads through page-locked memory.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "backend/registry.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/nvidia/context.h"
#include "cuda/runtime.h"

namespace at_moe {

namespace cuda {

namespace {

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "an attribute of the GPU");
  return value;
}

// A ring of page-locked slots on the way to the device. A slot is filled again when the copies out of it are done.
class Uploads {
 public:
  static constexpr size_t kSlotBytes = size_t{4} << 20;
  static constexpr size_t kSlots = 4;

  Uploads(std::shared_ptr<Context> context, Buffer memory) : context_(std::move(context)), memory_(std::move(memory)) {
    for (cudaEvent_t& event : copied_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  }
  ~Uploads() {
    for (cudaEvent_t event : copied_) {
      if (event) cudaEventDestroy(event);
    }
    cudaGetLastError();
  }
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  void copy(char* device, const char* host, size_t bytes) {
    constexpr size_t kAlign = 64;
    while (bytes > 0) {
      if (used_ == kSlotBytes) next_slot();
      const size_t count = std::min(bytes, kSlotBytes - used_);
      char* slot = memory_.as<char>() + slot_ * kSlotBytes + used_;
      std::memcpy(slot, host, count);
      check(cudaMemcpyAsync(device, slot, count, cudaMemcpyHostToDevice, context_->stream()), "an upload");
      used_ = std::min((used_ + count + kAlign - 1) / kAlign * kAlign, kSlotBytes);
      device += count, host += count, bytes -= count;
    }
  }

 private:
  void next_slot() {
    check(cudaEventRecord(copied_[slot_], context_->stream()), "an upload");
    slot_ = (slot_ + 1) % kSlots;
    check(cudaEventSynchronize(copied_[slot_]), "an upload");
    used_ = 0;
  }

  std::shared_ptr<Context> context_;
  Buffer memory_;
  std::array<cudaEvent_t, kSlots> copied_{};
  size_t slot_ = 0, used_ = 0;
};

struct CudaGraph : Graph {
  cudaGraphExec_t instance = nullptr;
  ~CudaGraph() override {
    if (instance) cudaGraphExecDestroy(instance);
    cudaGetLastError();
  }
};

class NvidiaRuntime : public Runtime {
 public:
  NvidiaRuntime(std::shared_ptr<Context> context, size_t budget)
      : context_(std::move(context)),
        budget_(budget),
        limits_{attribute(cudaDevAttrMultiProcessorCount, context_->device()),
                static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, context_->device())),
                10 * attribute(cudaDevAttrComputeCapabilityMajor, context_->device()) +
                    attribute(cudaDevAttrComputeCapabilityMinor, context_->device())},
        uploads_(context_, allocate_host(Uploads::kSlots * Uploads::kSlotBytes)) {}

  std::string name() const override { return "cuda"; }
  const DeviceLimits& limits() const override { return limits_; }
  std::unique_ptr<Runtime> beside() const override {
    return std::make_unique<NvidiaRuntime>(context_->beside(), budget_);
  }
  Stream stream() const override {
    context_->enter();
    return context_->stream();
  }
  int resident_blocks(const void* kernel, int threads, size_t shared_bytes) const override {
    context_->enter();
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "shared memory of a kernel");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), "a kernel's blocks");
    return std::max(blocks, 1) * limits_.multiprocessors;
  }

  std::unique_ptr<Graph> capture(const std::function<void()>& enqueue) override {
    if (cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) return forget_error();
    cudaGraph_t captured = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream(), &captured);
      if (captured) cudaGraphDestroy(captured);
      return forget_error();
    }
    if (cudaStreamEndCapture(stream(), &captured) != cudaSuccess) return forget_error();
    auto graph = std::make_unique<CudaGraph>();
    const cudaError_t error = cudaGraphInstantiate(&graph->instance, captured, 0);
    cudaGraphDestroy(captured);
    if (error != cudaSuccess) return forget_error();
    return graph;
  }
  void replay(const Graph& graph) override {
    check(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).instance, stream()), "the launch of a graph");
  }

  Buffer allocate(size_t bytes) override {
    const size_t in_use = context_->bytes_in_use();
    if (budget_ && (bytes > budget_ || in_use > budget_ - bytes)) {
      fail(Code::kOutOfMemory, "cannot allocate ", bytes, " bytes on cuda:", context_->device(), ": ", in_use,
           " bytes are in use of a budget of ", budget_);
    }
    void* data = context_->allocate(bytes);
    if (!data) {
      context_->trim();
      data = context_->allocate(bytes);
    }
    if (!data) {
      size_t free = 0, total = 0;
      check(cudaMemGetInfo(&free, &total), "the free memory");
      fail(Code::kOutOfMemory, "cannot allocate ", bytes, " bytes on cuda:", context_->device(), ": ", free,
           " bytes are free of ", total, ", ", in_use, " are in use by this engine");
    }
    return Buffer(data, bytes, [context = context_](void* memory, size_t size) { context->release(memory, size); });
  }

  Buffer allocate_host(size_t bytes) override {
    void* data = context_->allocate_host(bytes);
    if (!data) fail(Code::kOutOfMemory, "cannot allocate ", bytes, " bytes of page-locked memory");
    return Buffer(data, bytes, [context = context_](void* memory, size_t) { context->release_host(memory); });
  }

  void upload(void* device, const void* host, size_t bytes) override {
    context_->enter();
    uploads_.copy(static_cast<char*>(device), static_cast<const char*>(host), bytes);
  }
  void upload_async(void* device, const void* page_locked, size_t bytes) override {
    enqueue_copy(device, page_locked, bytes, cudaMemcpyHostToDevice);
  }
  void download(void* host, const void* device, size_t bytes) override {
    enqueue_copy(host, device, bytes, cudaMemcpyDeviceToHost);
    synchronize();
  }
  void copy(void* to, const void* from, size_t bytes) override {
    enqueue_copy(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void zero(void* device, size_t bytes) override {
    if (bytes) check(cudaMemsetAsync(device, 0, bytes, stream()), "zeroing");
  }
  void synchronize() override { check(cudaStreamSynchronize(stream()), "waiting for the GPU"); }

 private:
  void enqueue_copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes) check(cudaMemcpyAsync(to, from, bytes, kind, stream()), "a copy");
  }

  static std::unique_ptr<Graph> forget_error() {
    cudaGetLastError();
    return nullptr;
  }

  std::shared_ptr<Context> context_;
  size_t budget_;
  DeviceLimits limits_;
  Uploads uploads_;
};

size_t budget_of_environment() {
  const char* text = std::getenv("AT_MOE_CUDA_MEMORY");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const unsigned long long bytes = std::strtoull(text, &end, 10);
  if (*end != '\0') fail(Code::kUnsupported, "AT_MOE_CUDA_MEMORY is '", text, "': a number of bytes was expected");
  return bytes;
}

}  // namespace

}  // namespace cuda

std::unique_ptr<Backend> create_cuda_backend(const BackendOptions& options) {
  const size_t budget = options.memory_budget ? options.memory_budget : cuda::budget_of_environment();
  const auto context = std::make_shared<cuda::Context>(options.gpu);
  return std::make_unique<cuda::CudaBackend>(std::make_unique<cuda::NvidiaRuntime>(context, budget),
                                             options.activation);
}

}  // namespace at_moe
