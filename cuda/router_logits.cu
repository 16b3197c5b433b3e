// The product of a router in f32 (contract: backend/ops/router_logits.h). N rows of d inputs, C columns.
//   logits   a block per tile of rows and columns, split over d: thread t takes the pieces t, t + kThreads, … of both
//            operands into a sum for each element of the tile; these are added over lanes, then over warps, in order.
//            Few rows take narrow tiles, so that one row's weights are read by as many blocks as there are columns
//   dx       a thread per piece of d and kInputRows rows, C ascending
//   dW, db   a thread per piece of d and kWeightRows rows of W, rows of x ascending in runs of kGradientRun
#include <algorithm>
#include <vector>

#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/piece.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kPiece = kPieceElements<float>;
constexpr int kInputRows = 8, kWeightRows = 8;
constexpr int64_t kFewRows = 16;

template <typename T>
struct Inputs {
  const T* data;
  int64_t stride, cols;
  bool aligned;

  explicit Inputs(const Matrix& x) : data(x.row<T>(0)), stride(x.stride), cols(x.cols), aligned(in_pieces(x, kPiece)) {}
  __device__ void load(float (&values)[kPiece], int64_t row, int64_t first) const {
    load_piece(values, data + row * stride, first, cols, aligned);
  }
};

// Rows of a router's weight; padded with zeros to whole pieces.
struct Weights {
  const float* data;
  int64_t stride;
  int rows;

  explicit Weights(const Weight& weight)
      : data(matrix_of(weight).row(0)), stride(matrix_of(weight).stride), rows(static_cast<int>(weight.rows())) {}
  __device__ void load(float (&values)[kPiece], int row, int64_t first) const {
    load_piece(values, data + row * stride, first, stride, true);
  }
};

struct ScoreSegment {
  int64_t begin, end;
  Weights weights;
  const float* bias;
};

template <int rows, int cols>
struct ScoreTile {
  static constexpr int kRows = rows, kCols = cols, kValues = rows * cols;
};

// The sum of every value over the warp, in the order of warp_sum. A lane ends with `kHeld` of them, from value
// lane * n / 32 on.
template <int n>
struct WarpSums {
  static constexpr int kHeld = n > 32 ? n / 32 : 1;

  template <int step = 16, int held = n>
  __device__ static void add(float* values) {
    if constexpr (step > 0) {
      constexpr int kept = held > 1 ? held / 2 : 1, other = held - kept;
      const bool upper = other > 0 && (threadIdx.x & step) != 0;
#pragma unroll
      for (int i = 0; i < kept; ++i) {
        const float given = upper ? values[i] : values[i + other];
        if (upper) values[i] = values[i + other];
        values[i] += __shfl_xor_sync(~0u, given, step);
      }
      add<step / 2, kept>(values);
    }
  }
};

// logits[row0 + r, col0 + c] of one tile.
template <typename Tile, typename T>
__device__ void score_tile(const ScoreSegment& segment, const Inputs<T>& x, float* logits, int64_t stride, int64_t row0,
                           int col0) {
  using Sums = WarpSums<Tile::kValues>;
  __shared__ float partial[kWarps][Tile::kValues];
  float sums[Tile::kValues] = {};
#pragma unroll 1
  for (int64_t first = int64_t{threadIdx.x} * kPiece; first < x.cols; first += kThreads * kPiece) {
    float weights[Tile::kCols][kPiece] = {}, inputs[kPiece];
#pragma unroll
    for (int c = 0; c < Tile::kCols; ++c) {
      if (col0 + c < segment.weights.rows) segment.weights.load(weights[c], col0 + c, first);
    }
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (row0 + r >= segment.end) break;
      x.load(inputs, row0 + r, first);
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        float& sum = sums[r * Tile::kCols + c];
#pragma unroll
        for (int i = 0; i < kPiece; ++i) sum = fmaf(inputs[i], weights[c][i], sum);
      }
    }
  }
  Sums::add(sums);
  const int warp = threadIdx.x / 32, held = threadIdx.x % 32 * Tile::kValues / 32;
  __syncthreads();  // the tile before this one may still be read
#pragma unroll
  for (int i = 0; i < Sums::kHeld; ++i) partial[warp][held + i] = sums[i];
  __syncthreads();
  const int value = threadIdx.x;
  const int64_t row = row0 + value / Tile::kCols;
  const int col = col0 + value % Tile::kCols;
  if (value >= Tile::kValues || row >= segment.end || col >= segment.weights.rows) return;
  float total = partial[0][value];
#pragma unroll
  for (int other = 1; other < kWarps; ++other) total += partial[other][value];
  logits[row * stride + col] = segment.bias ? total + segment.bias[col] : total;
}

// Grid: tiles of rows, tiles of columns, segments.
template <typename Tile, typename T>
__global__ void __launch_bounds__(kThreads)
    score_rows(const ScoreSegment* segments, Inputs<T> x, float* logits, int64_t stride) {
  const ScoreSegment segment = segments[blockIdx.z];
  const int64_t row0 = segment.begin + int64_t{blockIdx.x} * Tile::kRows;
  const int col0 = static_cast<int>(blockIdx.y) * Tile::kCols;
  if (row0 < segment.end && col0 < segment.weights.rows) score_tile<Tile>(segment, x, logits, stride, row0, col0);
}

__global__ void __launch_bounds__(kThreads)
    add_input_gradient(Weights weights, const float* dlogits, int64_t stride, float* dx, int64_t dx_stride,
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
    add_weight_gradient(Inputs<T> x, const float* dlogits, int64_t stride, int64_t rows, int cols, float* dweight,
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
    else segments.push_back({begin, end, Weights(*layer->weight), layer->bias});
    last = layer;
    rows = std::max(rows, segments.back().end - segments.back().begin);
    cols = std::max(cols, layer->weight->rows());
  }
  dispatch(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    const auto start = [&](auto shape) {
      using Tile = decltype(shape);
      const dim3 grid(blocks_of(rows, Tile::kRows), blocks_of(cols, Tile::kCols),
                      static_cast<unsigned>(segments.size()));
      launch(stream(), {grid, dim3(kThreads)}, score_rows<Tile, T>, stage(std::span<const ScoreSegment>(segments)),
             Inputs<T>(args.x), args.logits.row(0), args.logits.stride);
    };
    if (rows <= kFewRows) start(ScoreTile<4, 1>());
    else start(ScoreTile<8, 4>());
  });
}

void CudaBackend::backward(const RouterLogitsBackward& args) {
  const Weights weights(*args.layer->weight);
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
           Inputs<T>(args.x), args.dlogits.row(0), args.dlogits.stride, rows, weights.rows, args.dweight, args.dbias,
           in_pieces(matrix(args.dweight, weights.rows, inputs), kPiece));
  });
}

}  // namespace at_moe::cuda
