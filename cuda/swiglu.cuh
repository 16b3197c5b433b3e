// The forward of SwiGLU as a phase (cuda/phase.h): y = gate σ(gate) up. An item is a row's next pieces of 16 bytes, one
// per thread; element-wise, so the output may be an input.
#pragma once

#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T>
struct Gated {
  Rows<const T> gate, up;
  Rows<T> y;
  int64_t rows, cols;
  bool aligned;

  static constexpr int kPiece = kPieceElements<T>;
  __host__ __device__ int64_t row_items() const {
    return (cols + kPhaseThreads * kPiece - 1) / (kPhaseThreads * kPiece);
  }
  int64_t items() const { return rows * row_items(); }
  __device__ void run(int64_t item) const {
    const int64_t row = item / row_items(), first = (item % row_items() * kPhaseThreads + threadIdx.x) * kPiece;
    if (first >= cols) return;
    float g[kPiece], u[kPiece];
    load_piece(g, gate.row(row), first, cols, aligned);
    load_piece(u, up.row(row), first, cols, aligned);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) u[i] *= g[i] * sigmoid(g[i]);
    store_piece(u, y.row(row), first, cols, aligned);
  }
};

}  // namespace at_moe::cuda
