// The product of a router as a phase (cuda/phase.h): logits = x Wᵀ + b in f32, N rows of d inputs, C columns. An item is a
// tile of rows and columns, split over d: thread t takes the pieces t, t + kPhaseThreads, … of both operands into a sum for
// each element of the tile; these are added over lanes, then over warps, in order. Few rows take narrow tiles, so that one
// row's weights are read by as many blocks as there are columns.
#pragma once

#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

inline constexpr int kScorePiece = kPieceElements<float>;

inline constexpr int kScoreWarps = kPhaseThreads / 32;

template <typename T>
struct ScoreInputs {
  const T* data;
  int64_t stride, cols;
  bool aligned;

  explicit ScoreInputs(const Matrix& x)
      : data(x.row<T>(0)), stride(x.stride), cols(x.cols), aligned(in_pieces(x, kScorePiece)) {}
  __device__ void load(float (&values)[kScorePiece], int64_t row, int64_t first) const {
    load_piece(values, data + row * stride, first, cols, aligned);
  }
};

// Rows of a router's weight; padded with zeros to whole pieces.
struct ScoreWeights {
  const float* data;
  int64_t stride;
  int rows;

  explicit ScoreWeights(const Weight& weight)
      : data(matrix_of(weight).row(0)), stride(matrix_of(weight).stride), rows(static_cast<int>(weight.rows())) {}
  __device__ void load(float (&values)[kScorePiece], int row, int64_t first) const {
    load_piece(values, data + row * stride, first, stride, true);
  }
};

struct ScoreSegment {
  int64_t begin, end;
  ScoreWeights weights;
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
__device__ void score_tile(const ScoreSegment& segment, const ScoreInputs<T>& x, float* logits, int64_t stride,
                           int64_t row0, int col0) {
  using Sums = WarpSums<Tile::kValues>;
  __shared__ float partial[kScoreWarps][Tile::kValues];
  float sums[Tile::kValues] = {};
#pragma unroll 1
  for (int64_t first = int64_t{threadIdx.x} * kScorePiece; first < x.cols; first += kPhaseThreads * kScorePiece) {
    float weights[Tile::kCols][kScorePiece] = {}, inputs[kScorePiece];
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
        for (int i = 0; i < kScorePiece; ++i) sum = fmaf(inputs[i], weights[c][i], sum);
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
  for (int other = 1; other < kScoreWarps; ++other) total += partial[other][value];
  logits[row * stride + col] = segment.bias ? total + segment.bias[col] : total;
}

template <typename T>
struct Score {
  const ScoreSegment* segments;
  ScoreInputs<T> x;
  Rows<float> logits;
  int64_t count;       // of segments
  int64_t rows, cols;  // most of a segment

  using Few = ScoreTile<4, 1>;
  using Many = ScoreTile<8, 4>;
  static constexpr int64_t kFewRows = 16;

  int64_t items() const { return rows <= kFewRows ? items_of<Few>() : items_of<Many>(); }
  __device__ void run(int64_t item) const {
    if (rows <= kFewRows) run_tile<Few>(item);
    else run_tile<Many>(item);
  }

 private:
  template <typename Tile>
  __host__ __device__ int64_t row_tiles() const {
    return (rows + Tile::kRows - 1) / Tile::kRows;
  }
  template <typename Tile>
  __host__ __device__ int64_t col_tiles() const {
    return (cols + Tile::kCols - 1) / Tile::kCols;
  }
  template <typename Tile>
  int64_t items_of() const {
    return count * row_tiles<Tile>() * col_tiles<Tile>();
  }
  template <typename Tile>
  __device__ void run_tile(int64_t item) const {
    const int64_t own = row_tiles<Tile>(), tiles = own * col_tiles<Tile>();
    const ScoreSegment& segment = segments[item / tiles];
    const int64_t row0 = segment.begin + item % own * Tile::kRows;
    const int col0 = static_cast<int>(item % tiles / own) * Tile::kCols;
    if (row0 < segment.end && col0 < segment.weights.rows) {
      score_tile<Tile>(segment, x, logits.data, logits.stride, row0, col0);
    }
  }
};

}  // namespace at_moe::cuda
