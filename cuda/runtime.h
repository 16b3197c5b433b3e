// The host side of a GPU, or of its emulation: memory, copies and the one stream of an engine. All functions fail with a
// coded error: kOutOfMemory says what was asked and what is free, kDeviceLost that the context is gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "cuda/platform.h"

namespace at_moe::cuda {

struct DeviceLimits {
  int multiprocessors = 1;
  size_t shared_bytes = 0;  // most of one block
  int architecture = 0;     // 80, 90, …
};

// Launches that can be made again as one.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual std::string name() const = 0;  // "cuda", "emulated"
  virtual const DeviceLimits& limits() const = 0;
  virtual std::unique_ptr<Runtime> beside() const = 0;  // of the same device, with a stream of its own
  virtual Stream stream() const = 0;                    // asked for before every launch: fails when the device is lost
  // The most blocks of a kernel that are on the device at once.
  virtual int resident_blocks(const void* kernel, int threads, size_t shared_bytes) const = 0;
  // The launches that `enqueue` makes on the stream, which do not run; null where the device cannot.
  virtual std::unique_ptr<Graph> capture(const std::function<void()>& enqueue) = 0;
  virtual void replay(const Graph& graph) = 0;

  virtual Buffer allocate(size_t bytes) = 0;       // NaN on the emulated device, undefined on a GPU
  virtual Buffer allocate_host(size_t bytes) = 0;  // page-locked
  // Ordered with the kernels of the stream; host memory may be reused when the call returns, but for upload_async.
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void upload_async(void* device, const void* page_locked, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
};

}  // namespace at_moe::cuda
