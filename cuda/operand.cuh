// Copies of matrices as operands of products, as a phase (cuda/phase.h). An item is the next pieces of 16 bytes of one
// copy, one per thread.
#pragma once

#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

struct OperandCopy {
  const void* from;
  void* to;
  int64_t from_stride, to_stride, rows, cols;
  bool is_float, aligned;
};

template <typename T>
struct Convert {
  const OperandCopy* copies;
  int64_t count, copy_items;  // of a copy

  static constexpr int kPiece = kPieceElements<T>;
  int64_t items() const { return count * copy_items; }
  __device__ void run(int64_t item) const {
    const OperandCopy& copy = copies[item / copy_items];
    const int64_t line_pieces = copy.to_stride / kPiece, piece = item % copy_items * kPhaseThreads + threadIdx.x;
    const int64_t row = piece / line_pieces, first = piece % line_pieces * kPiece;
    if (row >= copy.rows) return;
    float values[kPiece];
    if (copy.is_float) {
      load_piece(values, static_cast<const float*>(copy.from) + row * copy.from_stride, first, copy.cols, copy.aligned);
    } else {
      load_piece(values, static_cast<const T*>(copy.from) + row * copy.from_stride, first, copy.cols, copy.aligned);
    }
    store_piece(values, static_cast<T*>(copy.to) + row * copy.to_stride, first, copy.to_stride, true);
  }
};

}  // namespace at_moe::cuda
