// Operands of products (cuda/product.h) out of matrices of other types or strides: aligned copies of the product's
// type, all of a call in one launch. A thread makes a piece of 16 bytes; blocks over pieces of a matrix, and matrices.
#include "cuda/operand.cuh"

#include <algorithm>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/product.h"

namespace at_moe::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kPhaseThreads) copy_operands(Convert<T> phase) {
  phase.run(blockIdx.x);
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
    std::vector<Matrix> made;
    int64_t most_pieces = 0, most_rows = 0;
    for (Matrix& matrix : matrices) {
      if (!is_copied(matrix)) continue;
      require(matrix.dtype == type || matrix.dtype == DType::f32, "product: an operand of another type");
      const int64_t stride = operand_cols(matrix.cols, type);
      copies.push_back({matrix.data, to, matrix.stride, stride, matrix.rows, matrix.cols, matrix.dtype == DType::f32,
                        in_pieces(matrix, kPieceElements<T>)});
      most_pieces = std::max(most_pieces, matrix.rows * stride / kPieceElements<T>);
      most_rows = std::max(most_rows, matrix.rows);
      matrix = {to, matrix.rows, matrix.cols, stride, type};
      made.push_back(matrix);
      to += matrix.rows * stride;
    }
    Convert<T> phase{nullptr, static_cast<int64_t>(copies.size()), (most_pieces + kPhaseThreads - 1) / kPhaseThreads};
    if (type == activation_ && joins(most_rows)) {
      commands_.open();
      phase.copies = commands_.put(std::span<const OperandCopy>(copies));
      return commands_.add(PhaseKind::kConvert, phase, made);
    }
    phase.copies = stage(std::span<const OperandCopy>(copies));
    launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, copy_operands<T>, phase);
  });
}

}  // namespace at_moe::cuda
