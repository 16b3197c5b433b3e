// The CPU device: threads and SIMD. Activations are f32; every op has finished when its call returns.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/memory_meter.h"
#include "cpu/pool.h"
#include "cpu/rope_table.h"

namespace at_moe {

namespace cpu {
struct Kernels;
struct DotKernels;
struct PairKernels;
struct ProductKernels;
struct ConvertedRows;
struct Forms;
struct Operand;
struct Product;
struct GradientProduct;
}  // namespace cpu

// Zeroed memory aligned to 64 bytes; fails with kOutOfMemory naming the bytes asked for and free.
Buffer allocate_aligned(size_t bytes);

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads, const std::vector<int>& affinity = {});

  std::string name() const override { return "cpu"; }
  DType activation_type() const override { return DType::f32; }
  double multiply_rate() const override;
  void reserve(const StepCapacity&) override {}
  void synchronize() override {}
  std::unique_ptr<Backend> beside() const override { return std::make_unique<CpuBackend>(1); }
  void enter_thread() override;
  void begin_step() override { pool_.begin_step(); }
  void end_step() override { pool_.end_step(); }

  Buffer allocate(size_t bytes) override { return meter_.count(allocate_aligned(bytes)); }
  MemoryUse memory() const override { return meter_.use(); }
  void upload(void* device, const void* host, size_t bytes) override { copy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { copy(host, device, bytes); }
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* device, size_t bytes) override;

  std::unique_ptr<Weight> create_weight(int64_t rows, int64_t cols, Storage storage) override;
  std::unique_ptr<Weight> adopt_weight(int64_t rows, int64_t cols, Storage storage, Buffer packed) override;
  std::unique_ptr<Weight> create_router_weight(int64_t rows, int64_t cols) override;
  size_t weight_bytes(int64_t rows, int64_t cols, Storage storage) const override;
  bool takes_stacks_of_blocks() const override { return true; }
  size_t router_weight_bytes(int64_t rows, int64_t cols) const override;
  void load(std::span<const LoadedRows> parts) override;
  void pack(Weight& weight, int64_t row, int64_t count, const void* numbers, DType type) override;
  void pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) override;
  std::unique_ptr<KvPool> create_kv(const KvPool::Shape& shape) override;
  size_t kv_bytes(const KvPool::Shape& shape) const override;

  void forward(const LinearForward& args) override;
  void backward(const LinearBackward& args) override;
  void forward(const RouterLogits& args) override;
  void backward(const RouterLogitsBackward& args) override;
  void forward(const RouterForward& args) override;
  void backward(const RouterBackward& args) override;
  void forward(const AttentionForward& args) override;
  void backward(const AttentionBackward& args) override;
  void forward(const EmbeddingForward& args) override;
  void backward(const EmbeddingBackward& args) override;
  void forward(const RmsNormForward& args) override;
  void backward(const RmsNormBackward& args) override;
  void forward(const RopeForward& args) override;
  void backward(const RopeBackward& args) override;
  void forward(const SwigluForward& args) override;
  void backward(const SwigluBackward& args) override;
  void forward(const Dropout& args) override;
  void forward(const CrossEntropy& args) override;
  void forward(const SumRows& args) override;
  void forward(const SpreadRows& args) override;
  void sample(const Sampling& args) override;
  void update(const AdamW& args) override;
  double squared_norm(const SquaredNorm& args) override;

 private:
  // Memory for the running op: 64-byte aligned, contents undefined, valid until the next request for the same slot.
  // A worker may ask for its own slot inside a task.
  template <typename T = float>
  T* worker_scratch(int worker, int64_t count) {
    return static_cast<T*>(grow(worker_scratch_[worker], sizeof(T) * static_cast<size_t>(count)));
  }
  // That of an operand, for each of its forms.
  enum class Form { kBytes, kPairs };
  template <typename T = char>
  T* operand_scratch(int slot, Form form, int64_t count) {
    Buffer& buffer = operand_scratch_[slot][static_cast<size_t>(form)];
    return static_cast<T*>(grow(buffer, sizeof(T) * static_cast<size_t>(count)));
  }
  // Rows of one panel. Returns whether they are known to hold nothing that cannot be stored.
  bool pack_panel(const Weight& weight, int64_t row, int64_t count, const StoredRows& source, int worker);
  bool pack_rows(const Weight& weight, int64_t row, int64_t count, const StoredRows& source, int worker);
  void load_run(const LoadedRows& run, int worker);
  // The products of one job: tasks of all of them are spread over the threads together.
  void multiply(std::span<cpu::Product> products);
  void accumulate(std::span<const cpu::GradientProduct> products);
  void add_gradients(const LinearBackward& args);
  cpu::ProductKernels product_kernels() const;
  // x in the forms that are wanted.
  cpu::Operand operand(int slot, const Matrix& x, const cpu::Forms& forms);
  // Those of terms that came without the form that they read.
  void convert_operands(std::span<cpu::Product> products);
  cpu::ConvertedRows convert_rows(const cpu::DotKernels& kernels, const Matrix& x, char* memory);

  static void* grow(Buffer& buffer, size_t bytes);

  static constexpr int kOperands = 8;
  MemoryMeter meter_;
  Pool pool_;
  const cpu::Kernels& kernels_;
  const cpu::DotKernels* integers_;  // null: activations are never quantised
  const cpu::PairKernels* pairs_;    // null: activations are never split
  cpu::RopeTable rope_table_;
  std::vector<Buffer> worker_scratch_, read_scratch_;  // of each worker
  std::array<Buffer, 2> operand_scratch_[kOperands];
  Buffer converted_scratch_;
};

}  // namespace at_moe
