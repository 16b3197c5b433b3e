// The op contract: what a device must do for the model. Ops are enqueued in order on the backend's one stream by the one
// engine thread; `synchronize` waits. Pointers are device memory unless an argument says host. A backend may keep scratch
// of its own; `reserve` tells it the largest step before the first one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "backend/ops/attention.h"
#include "backend/ops/elementwise.h"
#include "backend/ops/linear.h"
#include "backend/ops/loss.h"
#include "backend/ops/optimizer.h"
#include "backend/ops/router.h"
#include "backend/ops/router_logits.h"
#include "backend/ops/sampling.h"
#include "backend/ops/segments.h"
#include "core/matrix.h"
#include "core/tensor_source.h"

namespace at_moe {

// Device memory, released with the handle. `release` must not throw; it keeps alive what it needs.
class Buffer {
 public:
  Buffer() = default;
  using Release = std::function<void(void* data, size_t bytes)>;
  Buffer(void* data, size_t bytes, Release release) : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) release_(data_, bytes_);
  }
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
  }
  template <typename T = float>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Release release_;
};

struct StepCapacity {
  int64_t rows = 0;       // most rows of one call
  int64_t sequences = 0;  // most sequences of one call
  int64_t context = 0;    // most keys of one sequence
  int64_t width = 0;      // widest input of a product
};

// Rows [row, row + count) of a stored tensor, and where they become the same rows: in a weight, packed, or as they are in a
// table of the tensor's type, or in both. Blocks go into a weight of q8 alone, numbers into any.
struct LoadedRows {
  const TensorSource* source = nullptr;
  int64_t row = 0, count = 0;
  Weight* weight = nullptr;
  void* table = nullptr;  // where row 0 lies
  float most = 0;         // the largest magnitude that can be stored
};

// What was sent to a device that works behind the calls, since the backend was made.
struct DeviceWork {
  uint64_t launches = 0;  // kernels, those of graphs included
  uint64_t graphs = 0;    // replayed
  uint64_t captures = 0;  // of graphs
  uint64_t uploads = 0, downloads = 0;

  DeviceWork operator-(const DeviceWork& before) const {
    return {launches - before.launches, graphs - before.graphs, captures - before.captures, uploads - before.uploads,
            downloads - before.downloads};
  }
};

// Bytes of memory handed out and not given back: now, and at most since the backend was made.
struct MemoryUse {
  size_t held = 0, peak = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;  // "cpu", "cuda", "emulated"
  virtual DType activation_type() const = 0;
  virtual double multiply_rate() const = 0;  // multiply-adds a second, rather too few: to plan the length of steps
  virtual void reserve(const StepCapacity& capacity) = 0;
  virtual void synchronize() = 0;
  virtual DeviceWork work() const { return {}; }
  // A backend of the same device for another thread. The ops of both read what either has allocated and filled, once the
  // one that filled it has been synchronized; memory goes back on the thread of the one it is from.
  virtual std::unique_ptr<Backend> beside() const = 0;
  virtual void enter_thread() {}  // called once by that other thread, before it works
  // A step is a run of calls close in time: workers may spin between them and rest after the end.
  virtual void begin_step() = 0;
  virtual void end_step() = 0;

  // Memory. `allocate` fails with kOutOfMemory naming the bytes asked for.
  virtual Buffer allocate(size_t bytes) = 0;
  virtual MemoryUse memory() const = 0;  // of `allocate`, weights and pools of keys; on any thread
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* device, size_t bytes) = 0;

  // Weights.
  virtual std::unique_ptr<Weight> create_weight(int64_t rows, int64_t cols, Storage storage) = 0;
  // A weight that reads `packed`, the bytes that `host_bytes` of an equal one gave; it is never packed into. Fails with
  // kUnsupported where weights do not lie in host memory, with kBadFile when the bytes are too few.
  virtual std::unique_ptr<Weight> adopt_weight(int64_t rows, int64_t cols, Storage storage, Buffer packed) = 0;
  virtual std::unique_ptr<Weight> create_router_weight(int64_t rows, int64_t cols) = 0;  // f32; for router_logits.h
  virtual size_t weight_bytes(int64_t rows, int64_t cols, Storage storage) const = 0;    // of such weights
  virtual bool takes_stacks_of_blocks() const = 0;  // whether weights of an AdapterStack may be of q8
  virtual size_t router_weight_bytes(int64_t rows, int64_t cols) const = 0;
  // All parts in one job. Fails as check_rows does, of several bad values for any of them, with all parts in an undefined
  // state.
  virtual void load(std::span<const LoadedRows> parts) = 0;
  // `count` rows of row-major numbers in host memory, or of f32 in device memory, into the rows from `row` on.
  virtual void pack(Weight& weight, int64_t row, int64_t count, const void* numbers, DType type) = 0;
  virtual void pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) = 0;
  virtual std::unique_ptr<KvPool> create_kv(const KvPool::Shape& shape) = 0;
  virtual size_t kv_bytes(const KvPool::Shape& shape) const = 0;

  // Ops.
  virtual void forward(const LinearForward& args) = 0;
  virtual void backward(const LinearBackward& args) = 0;
  virtual void forward(const RouterLogits& args) = 0;
  virtual void backward(const RouterLogitsBackward& args) = 0;
  virtual void forward(const RouterForward& args) = 0;
  virtual void backward(const RouterBackward& args) = 0;
  virtual void forward(const AttentionForward& args) = 0;
  virtual void backward(const AttentionBackward& args) = 0;
  virtual void forward(const EmbeddingForward& args) = 0;
  virtual void backward(const EmbeddingBackward& args) = 0;
  virtual void forward(const RmsNormForward& args) = 0;
  virtual void backward(const RmsNormBackward& args) = 0;
  virtual void forward(const RopeForward& args) = 0;
  virtual void backward(const RopeBackward& args) = 0;
  virtual void forward(const SwigluForward& args) = 0;
  virtual void backward(const SwigluBackward& args) = 0;
  virtual void forward(const Dropout& args) = 0;
  virtual void forward(const CrossEntropy& args) = 0;
  virtual void forward(const SumRows& args) = 0;
  virtual void forward(const SpreadRows& args) = 0;
  virtual void sample(const Sampling& args) = 0;
  virtual void update(const AdamW& args) = 0;
  virtual double squared_norm(const SquaredNorm& args) = 0;
};

}  // namespace at_moe
