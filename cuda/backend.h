// The ops on CUDA kernels, for a GPU or for its emulation (cuda/runtime.h). Activations, weights and the KV pool are of
// one type, f32, f16 or bf16, but for weights of q8; sums, the residual stream and routers are f32. Every op only
// enqueues, unless it returns values to the host. Those of few rows wait in `commands_`, to be sent together.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/memory_meter.h"
#include "cuda/commands.h"
#include "cuda/runtime.h"
#include "cuda/staging.h"
#include "cuda/tensor_map.h"

namespace at_moe::cuda {

enum class Form;
struct GatedOperand;
struct GatheredProduct;
struct GatheredResults;
struct MixtureSegment;
struct OpenBlocks;
struct Product;
struct RowList;

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<Runtime> runtime, DType activation);

  std::string name() const override { return runtime_->name(); }
  DType activation_type() const override { return activation_; }
  double multiply_rate() const override { return 5e13; }
  void reserve(const StepCapacity& capacity) override;
  void synchronize() override;
  DeviceWork work() const override { return work_; }
  std::unique_ptr<Backend> beside() const override {
    return std::make_unique<CudaBackend>(runtime_->beside(), activation_);
  }
  void begin_step() override {}
  void end_step() override { commands_.flush(); }

  Buffer allocate(size_t bytes) override;
  MemoryUse memory() const override { return meter_.use(); }
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* device, size_t bytes) override;

  std::unique_ptr<Weight> create_weight(int64_t rows, int64_t cols, Storage storage) override;
  std::unique_ptr<Weight> adopt_weight(int64_t rows, int64_t cols, Storage storage, Buffer packed) override;
  std::unique_ptr<Weight> create_router_weight(int64_t rows, int64_t cols) override;
  size_t weight_bytes(int64_t rows, int64_t cols, Storage storage) const override;
  bool takes_stacks_of_blocks() const override { return false; }
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
  // For one launch that is not of `commands_`.
  Stream stream() {
    commands_.flush();
    ++work_.launches;
    return runtime_->stream();
  }
  // Is an op of so many rows a phase of a launch?
  bool joins(int64_t rows) const { return rows <= kPhaseRows; }
  bool joins(int64_t rows, DType type) const { return joins(rows) && type == activation_; }

  // Device copy of host values that kernels enqueued from now on may read, until Staging::kBytes more have been staged.
  template <typename T>
  const T* stage(std::span<const T> values) {
    return static_cast<const T*>(stage_bytes(values.data(), values.size_bytes()));
  }
  const void* stage_bytes(const void* host, size_t bytes);

  // Device memory for the running op: 256-byte aligned, contents undefined, valid until the next request for the slot.
  template <typename T = float>
  T* scratch(int slot, int64_t count) {
    return static_cast<T*>(grow(scratch_[slot], sizeof(T) * static_cast<size_t>(count)));
  }
  void* grow(Buffer& buffer, size_t bytes);

  Storage held_as(Storage storage) const { return is_blocks(storage) ? storage : storage_of(activation_); }
  std::unique_ptr<Weight> make_weight(int64_t rows, int64_t cols, Storage storage);
  void pack_blocks(Weight& weight, int64_t row, int64_t count, const Q8Rows& source);

  // Products in one launch; terms of `products` that are `late` see the results of `early` (cuda/product.h).
  void multiply(Form form, DType type, std::span<const Product> early, std::span<const Product> products);
  template <typename Shape>
  void add_products(std::span<const Product> products);
  // The same by wgmma on sm_90a, which AT_MOE_CUDA_WGMMA=1 asks for: then all products of the backend's type, but for
  // those of weights of q8.
  void multiply_tensors(Form form, DType type, std::span<const Product> early, std::span<const Product> products);
  bool finds_wgmma();
  // What of a call is gathered.
  std::vector<MixtureSegment> segments_of(std::span<const AdapterSegment> segments, int64_t rows) const;
  // Products over the rows that select an expert, results by the routing records (cuda/gathered.h).
  void multiply_gathered(Form form, std::span<RowList> lists, std::span<const GatheredProduct> products,
                         const Matrix& routing, const GatheredResults& results);
  // The gathered shrinks of a call; returns what is open of `gated`, by segment and module.
  std::vector<OpenBlocks> gather_shrinks(const LinearForward& args, std::span<const MixtureSegment> segments,
                                         const Matrix& x, const GatedOperand& gated);
  // Fill in what a call's rows select (cuda/selection.h); valid until the next call of the same.
  void list_rows(const Matrix& routing, std::span<RowList> lists);
  void map_blocks(const Matrix& routing, std::span<OpenBlocks> maps);
  // Replaces the matrices that a product of the type cannot read by copies in a slot of the scratch memory.
  void make_operands(int slot, DType type, std::vector<Matrix>& matrices);
  void add_weight_gradients(const LinearBackward& args, std::span<const Matrix> g, const Matrix& dh);
  void add_bias_gradients(const LinearBackward& args);

  static constexpr int kScratchSlots = 8;
  static constexpr size_t kJoiningBytes = size_t{256} << 10;  // most of an upload that is a phase

  std::unique_ptr<Runtime> runtime_;
  DType activation_;
  DeviceWork work_;
  MemoryMeter meter_;
  Staging staging_;
  Commands commands_;
  Buffer scratch_[kScratchSlots];
  TensorMaps tensor_maps_;
  bool uses_wgmma_;
};

}  // namespace at_moe::cuda
