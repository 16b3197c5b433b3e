// Dropout (contract: backend/ops/elementwise.h). Element i = (first_row + n) * cols + j of the micro-batch is kept when
//   uniform(philox(seed, stream, i / 4)[i mod 4]) >= p
// so the mask depends on the indices alone. A thread per draw: the up to four elements of one row that share a counter.
#include <algorithm>

#include "core/rng.h"
#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kDraw = 4;  // numbers of one counter

struct Mask {
  uint64_t seed, stream;
  int64_t first_row;
  float p, factor;
};

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    drop(const X* x, int64_t x_stride, Y* y, int64_t y_stride, int64_t cols, Mask mask, bool accumulate, bool aligned) {
  const int64_t row = blockIdx.x, start = (mask.first_row + row) * cols;
  const int64_t counter = start / kDraw + int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const int64_t first = counter * kDraw - start;  // may lie before the row
  if (first >= cols) return;
  const X* from = x + row * x_stride;
  Y* to = y + row * y_stride;
  const auto bits = philox(mask.seed, mask.stream, static_cast<uint64_t>(counter));
  if (aligned) {
    float values[kDraw], before[kDraw] = {};
    load_piece(values, from, first, cols, true);
    if (accumulate) load_piece(before, to, first, cols, true);
#pragma unroll
    for (int i = 0; i < kDraw; ++i)
      values[i] = before[i] + (uniform(bits[i]) >= mask.p ? values[i] * mask.factor : 0.0f);
    store_piece(values, to, first, cols, true);
    return;
  }
#pragma unroll
  for (int i = 0; i < kDraw; ++i) {
    const int64_t j = first + i;
    if (j < 0 || j >= cols) continue;
    const float value = uniform(bits[i]) >= mask.p ? widen(from[j]) * mask.factor : 0.0f;
    to[j] = narrow<Y>(accumulate ? widen(to[j]) + value : value);
  }
}

}  // namespace

void CudaBackend::forward(const Dropout& args) {
  require(args.p >= 0 && args.p < 1, "dropout: p is ", args.p);
  const Mask mask{args.seed, args.stream, args.first_row, args.p, 1.0f / (1.0f - args.p)};
  const int64_t cols = args.x.cols, draws = cols / kDraw + 2;  // most that a row touches
  const unsigned blocks = static_cast<unsigned>((draws + kThreads - 1) / kThreads);
  const bool aligned = cols % kDraw == 0 && in_pieces(args.x, kDraw) && in_pieces(args.y, kDraw);
  dispatch(args.x.dtype, args.y.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using Y = decltype(output);
    launch(stream(), {dim3(static_cast<unsigned>(args.x.rows), blocks), dim3(kThreads)}, drop<X, Y>, args.x.row<X>(0),
           args.x.stride, args.y.row<Y>(0), args.y.stride, cols, mask, args.accumulate, aligned);
  });
}

}  // namespace at_moe::cuda
