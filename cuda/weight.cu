// Packing of weights: rows of any stored type into rows of the activation type, padded with zeros (cuda/weight.h). Host
// rows cross in runs through one buffer, so that loading needs no second copy of a tensor on the device.
#include "cuda/weight.h"

#include <algorithm>

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

void convert(Stream stream, const void* source, DType source_type, const Matrix& to) {
  const LaunchShape shape{dim3(static_cast<unsigned>(to.rows)), dim3(kThreads)};
  dispatch(source_type, [&](auto from) {
    dispatch(to.dtype, [&](auto element) {
      using Source = decltype(from);
      using T = decltype(element);
      launch(stream, shape, convert_rows<Source, T>, static_cast<const Source*>(source), to.row<T>(0), to.cols,
             to.stride);
    });
  });
}

Matrix rows_of(const Weight& weight, int64_t row, int64_t count) {
  require(row >= 0 && count >= 0 && row + count <= weight.rows(), "pack: rows ", row, " + ", count, " of ",
          weight.rows());
  return matrix_of(weight).row_range(row, count);
}

}  // namespace

void CudaBackend::pack(Weight& weight, int64_t row, int64_t count, const void* source, DType source_type) {
  const Matrix to = rows_of(weight, row, count);
  const int64_t row_bytes = weight.cols() * static_cast<int64_t>(size_of(source_type));
  const int64_t run = std::max<int64_t>(1, kRunBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t first = 0; first < count; first += run) {
    const int64_t rows = std::min(run, count - first);
    char* buffer = scratch<char>(kPackSlot, rows * row_bytes);
    commands_.flush();  // what was asked for before may use the buffer
    runtime_->upload(buffer, static_cast<const char*>(source) + first * row_bytes,
                     static_cast<size_t>(rows * row_bytes));
    convert(stream(), buffer, source_type, to.row_range(first, rows));
  }
}

void CudaBackend::pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) {
  convert(stream(), device_source, DType::f32, rows_of(weight, row, count));
}

}  // namespace at_moe::cuda
