// SwiGLU (contract: backend/ops/elementwise.h). σ = 1 / (1 + e^-gate).
//   forward   y = gate σ up
//   backward  dup = dy gate σ;  dgate = dy up σ (1 + gate (1 - σ))
// A thread per piece of 16 bytes, blocks over rows and pieces; element-wise, so outputs may be the inputs.
#include "cuda/swiglu.cuh"

#include <algorithm>

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kPhaseThreads) gated(Gated<T> phase) {
  phase.run(blockIdx.x);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gated_backward(Rows<const T> gate, Rows<const T> up, Rows<const T> dy,
                                                           Rows<T> dgate, Rows<T> dup, int64_t cols, bool aligned) {
  constexpr int n = kPieceElements<T>;
  const int64_t row = blockIdx.x, first = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * n;
  if (first >= cols) return;
  float g[n], u[n], d[n];
  load_piece(g, gate.row(row), first, cols, aligned);
  load_piece(u, up.row(row), first, cols, aligned);
  load_piece(d, dy.row(row), first, cols, aligned);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float value = g[i], s = sigmoid(value);
    g[i] = d[i] * u[i] * (s * (1.0f + value * (1.0f - s)));
    u[i] = d[i] * (value * s);
  }
  store_piece(g, dgate.row(row), first, cols, aligned);
  store_piece(u, dup.row(row), first, cols, aligned);
}

template <typename T>
LaunchShape shape_of(const Matrix& matrix) {
  constexpr int64_t kWarp = 32, n = kPieceElements<T>;
  const int64_t warps = (matrix.cols + kWarp * n - 1) / (kWarp * n);
  const int64_t threads = std::min<int64_t>(kThreads, warps * kWarp);
  const int64_t blocks = (warps * kWarp + threads - 1) / threads;
  return {dim3(static_cast<unsigned>(matrix.rows), static_cast<unsigned>(blocks)),
          dim3(static_cast<unsigned>(threads))};
}

}  // namespace

void CudaBackend::forward(const SwigluForward& args) {
  dispatch(args.y.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int n = kPieceElements<T>;
    const bool aligned = in_pieces(args.gate, n) && in_pieces(args.up, n) && in_pieces(args.y, n);
    const Gated<T> phase{
        rows_of<const T>(args.gate), rows_of<const T>(args.up), rows_of<T>(args.y), args.y.rows, args.y.cols, aligned};
    if (joins(args.y.rows)) return commands_.add(PhaseKind::kGated, phase, args.y);
    launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, gated<T>, phase);
  });
}

void CudaBackend::backward(const SwigluBackward& args) {
  dispatch(args.dy.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int n = kPieceElements<T>;
    const bool aligned = in_pieces(args.gate, n) && in_pieces(args.up, n) && in_pieces(args.dy, n) &&
                         in_pieces(args.dgate, n) && in_pieces(args.dup, n);
    launch(stream(), shape_of<T>(args.dy), gated_backward<T>, rows_of<const T>(args.gate), rows_of<const T>(args.up),
           rows_of<const T>(args.dy), rows_of<T>(args.dgate), rows_of<T>(args.dup), args.dy.cols, aligned);
  });
}

}  // namespace at_moe::cuda
