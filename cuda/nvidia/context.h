// What the runtime and its buffers share of one engine on one GPU. The context of a GPU is the process's: when one engine
// loses it, all engines on that GPU have lost it, and each of their calls fails with kDeviceLost.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "cuda/nvidia/host.h"

namespace at_moe::cuda {

class Context {
 public:
  explicit Context(int device) : Context(device, std::make_shared<std::atomic<size_t>>(0)) {}
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // One of the same engine, with a stream of its own; both count the same bytes in use.
  std::shared_ptr<Context> beside() const { return std::shared_ptr<Context>(new Context(device_, in_use_)); }

  // Makes the GPU that of this thread. Before every group of CUDA calls.
  void enter() const;
  int device() const { return device_; }
  Stream stream() const { return stream_; }

  // Ordered with the stream. Null where there is no memory left, with no error pending.
  void* allocate(size_t bytes);
  void* allocate_host(size_t bytes);
  // Release never fails: after a loss, and while the process ends, memory goes with the context.
  void release(void* data, size_t bytes) noexcept;
  void release_host(void* data) noexcept;
  // Gives memory that was released back to the driver; waits for the stream.
  void trim();

  size_t bytes_in_use() const { return *in_use_; }

 private:
  Context(int device, std::shared_ptr<std::atomic<size_t>> in_use);
  bool enter_quietly() const noexcept;

  int device_;
  Stream stream_ = nullptr;
  cudaMemPool_t pool_ = nullptr;  // of the device; null where the driver has no stream-ordered allocation
  std::shared_ptr<std::atomic<size_t>> in_use_;
};

}  // namespace at_moe::cuda
