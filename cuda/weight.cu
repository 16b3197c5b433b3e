// Packing of weights (cuda/weight.h): rows of any stored type into rows of the activation type, padded with zeros, or into
// blocks of q8; rows of q8 into blocks. Host rows cross in runs through one buffer, so that loading needs no second copy of
// a tensor on the device.
#include "cuda/weight.h"

#include <algorithm>
#include <bit>
#include <variant>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/number.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kRunBytes = int64_t{32} << 20;
constexpr int kPackSlot = 0;

// One block per row.
template <typename Source, typename T>
__global__ void convert_rows(const Source* source, T* to, int64_t cols, int64_t stride) {
  const Source* from = source + blockIdx.x * cols;
  for (int64_t j = threadIdx.x; j < cols; j += kThreads) to[blockIdx.x * stride + j] = narrow<T>(widen(from[j]));
}

// A thread has one block of a row: its row, the block, its inputs, and where they go.
struct OwnBlock {
  int64_t row, block, first;
  int count;
  int8_t* values;
  uint16_t* scale;

  __device__ explicit OwnBlock(const BlockMatrix& to) {
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, blocks = to.stride / kQ8Block;
    row = index / blocks;
    block = index % blocks;
    first = block * kQ8Block;
    count = static_cast<int>(to.cols - first < kQ8Block ? to.cols - first : kQ8Block);
    values = to.values + row * to.stride + first;
    scale = to.scales + block * to.scale_stride + row;
  }
};

template <typename Source>
__global__ void quantize_rows(const Source* source, BlockMatrix to) {
  const OwnBlock own(to);
  if (own.row >= to.rows) return;
  const Source* from = source + own.row * to.cols + own.first;
  float largest = 0;
  for (int i = 0; i < own.count; ++i) largest = fmaxf(largest, fabsf(widen(from[i])));
  *own.scale = q8_scale(largest);
  const float scale = half_to_float(*own.scale);
  for (int i = 0; i < own.count; ++i) own.values[i] = scale > 0 ? q8_value(widen(from[i]), scale) : int8_t{0};
}

__global__ void place_rows(Q8Rows source, BlockMatrix to) {
  const OwnBlock own(to);
  if (own.row >= to.rows) return;
  const int8_t* from = source.values + own.row * to.cols + own.first;
  *own.scale = source.scales[own.row * (to.stride / kQ8Block) + own.block];
  for (int i = 0; i < own.count; ++i) own.values[i] = from[i];
}

LaunchShape thread_per_block(const BlockMatrix& to) {
  const int64_t blocks = to.rows * (to.stride / kQ8Block);
  return {dim3(static_cast<unsigned>((blocks + kThreads - 1) / kThreads)), dim3(kThreads)};
}

void convert(Stream stream, const void* source, DType source_type, const WeightView& to) {
  dispatch(source_type, [&](auto from) {
    using Source = decltype(from);
    const auto* rows = static_cast<const Source*>(source);
    if (const auto* blocks = std::get_if<BlockMatrix>(&to)) {
      return launch(stream, thread_per_block(*blocks), quantize_rows<Source>, rows, *blocks);
    }
    const Matrix& numbers = std::get<Matrix>(to);
    const LaunchShape shape{dim3(static_cast<unsigned>(numbers.rows)), dim3(kThreads)};
    dispatch(numbers.dtype, [&](auto element) {
      using T = decltype(element);
      launch(stream, shape, convert_rows<Source, T>, rows, numbers.row<T>(0), numbers.cols, numbers.stride);
    });
  });
}

WeightView rows_of(const Weight& weight, int64_t row, int64_t count) {
  require(row >= 0 && count >= 0 && row + count <= weight.rows(), "pack: rows ", row, " + ", count, " of ",
          weight.rows());
  return std::visit([&](const auto& view) -> WeightView { return view.row_range(row, count); }, view_of(weight));
}

// f(first, rows) for runs of rows that fit the buffer.
template <typename F>
void for_runs(int64_t count, int64_t row_bytes, F&& f) {
  const int64_t run = std::max<int64_t>(1, kRunBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t first = 0; first < count; first += run) f(first, std::min(run, count - first));
}

}  // namespace

void CudaBackend::load(std::span<const LoadedRows> parts) {
  std::vector<uint16_t> buffer;
  for (const LoadedRows& part : parts) {
    const TensorSource& source = *part.source;
    const auto row_bytes = static_cast<int64_t>(source.row_bytes());
    for_runs(part.count, row_bytes, [&](int64_t first, int64_t count) {
      if (source.file) buffer.resize(std::max(buffer.size(), static_cast<size_t>(count * row_bytes + 1) / 2));
      const int64_t row = part.row + first;
      const StoredRows rows = source.read(row, count, buffer.data());
      check_rows(source, row, count, rows, part.most);
      if (const auto* blocks = std::get_if<Q8Rows>(&rows)) return pack_blocks(*part.weight, row, count, *blocks);
      const auto& numbers = std::get<NumberRows>(rows);
      if (part.weight) pack(*part.weight, row, count, numbers.values, numbers.type);
      if (part.table)
        upload(static_cast<char*>(part.table) + row * row_bytes, numbers.values,
               static_cast<size_t>(count * row_bytes));
    });
  }
}

void CudaBackend::pack(Weight& weight, int64_t row, int64_t count, const void* numbers, DType type) {
  const NumberRows source{numbers, type, weight.cols()};
  for_runs(count, source.row_bytes(), [&](int64_t first, int64_t rows) {
    const int64_t bytes = rows * source.row_bytes();
    char* buffer = scratch<char>(kPackSlot, bytes);
    commands_.flush();  // what was asked for before may use the buffer
    runtime_->upload(buffer, source.from_row(first).values, static_cast<size_t>(bytes));
    convert(stream(), buffer, type, rows_of(weight, row + first, rows));
  });
}

// A run of rows that fits the buffer.
void CudaBackend::pack_blocks(Weight& weight, int64_t row, int64_t count, const Q8Rows& source) {
  require(is_blocks(weight.storage()) && source.cols == weight.cols(), "pack: blocks into ", name_of(weight.storage()));
  const int64_t scale_bytes = q8_blocks(source.cols) * static_cast<int64_t>(sizeof(uint16_t));
  char* buffer = scratch<char>(kPackSlot, count * (scale_bytes + source.cols));
  commands_.flush();  // what was asked for before may use the buffer
  auto* scales = reinterpret_cast<uint16_t*>(buffer);
  auto* values = reinterpret_cast<int8_t*>(buffer + count * scale_bytes);
  runtime_->upload(scales, source.scales, static_cast<size_t>(count * scale_bytes));
  runtime_->upload(values, source.values, static_cast<size_t>(count * source.cols));
  const BlockMatrix to = std::get<BlockMatrix>(rows_of(weight, row, count));
  launch(stream(), thread_per_block(to), place_rows, Q8Rows{values, scales, source.cols}, to);
}

void CudaBackend::pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) {
  convert(stream(), device_source, DType::f32, rows_of(weight, row, count));
}

}  // namespace at_moe::cuda
