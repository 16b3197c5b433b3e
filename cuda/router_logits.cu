// The product of a router in f32 (contract: backend/ops/router_logits.h). N rows of d inputs, C columns.
//   logits   cuda/router_logits.cuh
//   dx       a thread per piece of d and kInputRows rows, C ascending
//   dW, db   a thread per piece of d and kWeightRows rows of W, rows of x ascending in runs of kGradientRun
#include "cuda/router_logits.cuh"

#include <algorithm>
#include <vector>

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128, kPiece = kScorePiece;
constexpr int kInputRows = 8, kWeightRows = 8;

template <typename T>
__global__ void __launch_bounds__(kPhaseThreads) score_rows(Score<T> phase) {
  phase.run(blockIdx.x);
}

__global__ void __launch_bounds__(kThreads)
    add_input_gradient(ScoreWeights weights, const float* dlogits, int64_t stride, float* dx, int64_t dx_stride,
                       int64_t rows, int64_t cols, bool aligned) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPiece;
  const int64_t row0 = int64_t{blockIdx.y} * kInputRows;
  if (first >= cols) return;
  float sums[kInputRows][kPiece] = {};
#pragma unroll 2
  for (int c = 0; c < weights.rows; ++c) {
    float weight[kPiece];
    weights.load(weight, c, first);
#pragma unroll
    for (int r = 0; r < kInputRows; ++r) {
      const float slope = row0 + r < rows ? dlogits[(row0 + r) * stride + c] : 0;
#pragma unroll
      for (int i = 0; i < kPiece; ++i) sums[r][i] = fmaf(slope, weight[i], sums[r][i]);
    }
  }
#pragma unroll
  for (int r = 0; r < kInputRows; ++r) {
    if (row0 + r >= rows) break;
    float* to = dx + (row0 + r) * dx_stride;
    float values[kPiece];
    load_piece(values, to, first, cols, aligned);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) values[i] += sums[r][i];
    store_piece(values, to, first, cols, aligned);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_weight_gradient(ScoreInputs<T> x, const float* dlogits, int64_t stride, int64_t rows, int cols, float* dweight,
                        float* dbias, bool aligned) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPiece;
  const int col0 = static_cast<int>(blockIdx.y) * kWeightRows, own = col0 + static_cast<int>(threadIdx.x);
  const bool adds_bias = dbias && blockIdx.x == 0 && threadIdx.x < kWeightRows && own < cols;
  for (int64_t run = 0; run < rows; run += kGradientRun) {
    const int64_t end = run + kGradientRun < rows ? run + kGradientRun : rows;
    if (adds_bias) {
      float sum = 0;
      for (int64_t n = run; n < end; ++n) sum += dlogits[n * stride + own];
      dbias[own] += sum;
    }
    if (!dweight || first >= x.cols) continue;
    float sums[kWeightRows][kPiece] = {};
#pragma unroll 2
    for (int64_t n = run; n < end; ++n) {
      float inputs[kPiece];
      x.load(inputs, n, first);
#pragma unroll
      for (int c = 0; c < kWeightRows; ++c) {
        const float slope = col0 + c < cols ? dlogits[n * stride + col0 + c] : 0;
#pragma unroll
        for (int i = 0; i < kPiece; ++i) sums[c][i] = fmaf(slope, inputs[i], sums[c][i]);
      }
    }
#pragma unroll
    for (int c = 0; c < kWeightRows; ++c) {
      if (col0 + c >= cols) break;
      float* to = dweight + (col0 + c) * x.cols;
      float values[kPiece];
      load_piece(values, to, first, x.cols, aligned);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) values[i] += sums[c][i];
      store_piece(values, to, first, x.cols, aligned);
    }
  }
}

unsigned blocks_of(int64_t extent, int64_t tile) { return static_cast<unsigned>((extent + tile - 1) / tile); }

}  // namespace

void CudaBackend::forward(const RouterLogits& args) {
  std::vector<ScoreSegment> segments;
  const RouterLayer* last = nullptr;
  int64_t rows = 0, cols = 0;
  for (const auto& [begin, end, layer] : args.segments) {
    if (begin >= end) continue;
    if (layer == last && segments.back().end == begin) segments.back().end = end;
    else segments.push_back({begin, end, ScoreWeights(*layer->weight), layer->bias});
    last = layer;
    rows = std::max(rows, segments.back().end - segments.back().begin);
    cols = std::max(cols, layer->weight->rows());
  }
  if (segments.empty()) return;
  const std::span<const ScoreSegment> own(segments);
  dispatch(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    Score<T> phase{
        nullptr, ScoreInputs<T>(args.x), rows_of<float>(args.logits), static_cast<int64_t>(segments.size()), rows,
        cols};
    if (joins(args.x.rows, args.x.dtype)) {
      commands_.open();
      phase.segments = commands_.put(own);
      return commands_.add(PhaseKind::kScore, phase, args.logits);
    }
    phase.segments = stage(own);
    launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, score_rows<T>, phase);
  });
}

void CudaBackend::backward(const RouterLogitsBackward& args) {
  const ScoreWeights weights(*args.layer->weight);
  const int64_t rows = args.x.rows, inputs = args.x.cols;
  if (rows == 0) return;
  const unsigned pieces = blocks_of(inputs, int64_t{kThreads} * kPiece);
  if (args.dx) {
    launch(stream(), {dim3(pieces, blocks_of(rows, kInputRows)), dim3(kThreads)}, add_input_gradient, weights,
           args.dlogits.row(0), args.dlogits.stride, args.dx.row(0), args.dx.stride, rows, inputs,
           in_pieces(args.dx, kPiece));
  }
  if (!args.dweight && !args.dbias) return;
  dispatch(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    launch(stream(), {dim3(pieces, blocks_of(weights.rows, kWeightRows)), dim3(kThreads)}, add_weight_gradient<T>,
           ScoreInputs<T>(args.x), args.dlogits.row(0), args.dlogits.stride, rows, weights.rows, args.dweight,
           args.dbias, in_pieces(matrix(args.dweight, weights.rows, inputs), kPiece));
  });
}

}  // namespace at_moe::cuda
