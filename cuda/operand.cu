// Operands of products (cuda/product.h) out of matrices of other types or strides: aligned copies of the product's
// type, all of a call in one launch. A thread makes a piece of 16 bytes; blocks over pieces of a matrix, and matrices.
#include <algorithm>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/product.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;

struct OperandCopy {
  const void* from;
  void* to;
  int64_t from_stride, to_stride, rows, cols;
  bool is_float, aligned;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) copy_operands(const OperandCopy* copies) {
  constexpr int n = kPieceElements<T>;
  const OperandCopy copy = copies[blockIdx.y];
  const int64_t line_pieces = copy.to_stride / n, piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = piece / line_pieces, first = piece % line_pieces * n;
  if (row >= copy.rows) return;
  float values[n];
  if (copy.is_float) {
    load_piece(values, static_cast<const float*>(copy.from) + row * copy.from_stride, first, copy.cols, copy.aligned);
  } else {
    load_piece(values, static_cast<const T*>(copy.from) + row * copy.from_stride, first, copy.cols, copy.aligned);
  }
  store_piece(values, static_cast<T*>(copy.to) + row * copy.to_stride, first, copy.to_stride, true);
}

}  // namespace

void CudaBackend::make_operands(int slot, DType type, std::vector<Matrix>& matrices) {
  const auto is_copied = [type](const Matrix& matrix) { return matrix.rows > 0 && !is_operand(matrix, type); };
  int64_t elements = 0;
  for (const Matrix& matrix : matrices) {
    if (is_copied(matrix)) elements += matrix.rows * operand_cols(matrix.cols, type);
  }
  if (elements == 0) return;
  dispatch(type, [&](auto element) {
    using T = decltype(element);
    T* to = scratch<T>(slot, elements);
    std::vector<OperandCopy> copies;
    int64_t most = 0;
    for (Matrix& matrix : matrices) {
      if (!is_copied(matrix)) continue;
      require(matrix.dtype == type || matrix.dtype == DType::f32, "product: an operand of another type");
      const int64_t stride = operand_cols(matrix.cols, type);
      copies.push_back({matrix.data, to, matrix.stride, stride, matrix.rows, matrix.cols, matrix.dtype == DType::f32,
                        in_pieces(matrix, kPieceElements<T>)});
      most = std::max(most, matrix.rows * stride / kPieceElements<T>);
      matrix = {to, matrix.rows, matrix.cols, stride, type};
      to += matrix.rows * stride;
    }
    const LaunchShape shape{
        dim3(static_cast<unsigned>((most + kThreads - 1) / kThreads), static_cast<unsigned>(copies.size())),
        dim3(kThreads)};
    launch(stream(), shape, copy_operands<T>, stage(std::span<const OperandCopy>(copies)));
  });
}

}  // namespace at_moe::cuda
