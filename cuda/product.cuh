// The kernel behind cuda/product.h. A block has one tile of one product: a pipeline of kStages copies of the operands'
// next kDepth columns in shared memory, filled by cp.async. Warps share the tile; accumulators are in the fragments of
// mma.m16n8k16 for every type:
//   acc[i][j][e] of lane 4 g + t: row 16 i + 8 (e / 2) + g, column 8 j + 2 t + e % 2 of the warp's part
// f16 and bf16 multiply on tensor cores in steps of 16, f32 by fused multiply-adds. Where terms are late, blocks draw
// tickets: the early tiles are taken first, by blocks that run and never wait, so the others may wait for them.
#pragma once

#include <cstdint>

#include "backend/ops/linear.h"
#include "cuda/number.h"
#include "cuda/piece.h"
#include "cuda/product.h"

namespace at_moe::cuda {

struct Operand {
  const void* data;
  int64_t stride;
};

struct TermRecord {
  Operand a, b;
  int begin, end, k;
  bool late;
  Gates gates;
};

struct Target {
  void* data;
  int64_t stride;
  bool is_float, aligned;
};

struct ProductRecord {
  int begin, end, cols;
  int first_tile, row_tiles;
  int first_term, terms;
  const float* bias;
  Target out, add, raw, operand, rest;
  Gates gates;
  const float* scale;
};

struct ProductTable {
  const ProductRecord* products;  // by first_tile
  const TermRecord* terms;
  int count;
  int early_tiles;     // 0: no term is late
  uint32_t* counters;  // tickets drawn, early tiles done; zero at the start
};

template <int rows, int cols, int depth_bytes, int warp_rows, int warp_cols, int stages>
struct TileShape {
  static constexpr int kRows = rows, kCols = cols, kDepthBytes = depth_bytes, kStages = stages;
  static constexpr int kWarpRows = warp_rows, kWarpCols = warp_cols, kThreads = 32 * warp_rows * warp_cols;
};

// kExtent rows (of m or n) by kDepth columns (of k) of an operand. In shared memory they lie as in global memory: lines
// along k, or along the rows when transposed, with 16 bytes between them so that neighbours start in different banks.
template <typename T, bool transposed, int kExtent, int kDepth, int kThreads>
struct OperandTile {
  static constexpr bool kTransposed = transposed;
  static constexpr int kPiece = kPieceElements<T>;
  static constexpr int kLines = kTransposed ? kDepth : kExtent, kWidth = kTransposed ? kExtent : kDepth;
  static constexpr int kLine = kWidth + kPiece;  // elements
  static constexpr int kElements = kLines * kLine;
  static constexpr int kLinePieces = kWidth / kPiece, kLineStep = kThreads / kLinePieces;
  static_assert(kThreads % kLinePieces == 0 && kLines % kLineStep == 0);

  // Which pieces a thread has to copy: the others are multiplied by zeros.
  struct Needs {
    uint32_t lines = ~0u;  // a bit for each of the thread's lines
    bool column = true;
  };
  static_assert(kLines / kLineStep <= 32);

  // Copies what begins at (row, k); what is outside of rows [row_begin, row_end) or of [0, k_end) becomes zero.
  __device__ static void copy(T* tile, const Operand& operand, int row, int row_begin, int row_end, int k, int k_end,
                              const Needs& needs = {}) {
    const int line = threadIdx.x / kLinePieces, at = threadIdx.x % kLinePieces * kPiece;
    const int first_line = (kTransposed ? k : row) + line, column = (kTransposed ? row : k) + at;
    const int line_begin = kTransposed ? 0 : row_begin, line_end = kTransposed ? k_end : row_end;
    const int left = (kTransposed ? row_end : k_end) - column;
    const int count = left < 0 || !needs.column ? 0 : left < kPiece ? left : kPiece;
    const int bytes = count * static_cast<int>(sizeof(T));
    const T* data = static_cast<const T*>(operand.data);
    const T* from = data + first_line * operand.stride + column;
    T* to = tile + line * kLine + at;
#pragma unroll
    for (int n = 0; n < kLines; n += kLineStep) {
      const bool inside =
          bytes > 0 && first_line + n >= line_begin && first_line + n < line_end && (needs.lines >> n / kLineStep & 1);
      cp_async16(to + n * kLine, inside ? from : data, inside ? bytes : 0);
      from += kLineStep * operand.stride;
    }
  }

  // Two values of a row from column k on.
  __device__ static float2 two(const T* tile, int row, int k) {
    if constexpr (!kTransposed) return *reinterpret_cast<const float2*>(tile + row * kLine + k);
    const T* at = tile + k * kLine + row;
    return {at[0], at[kLine]};
  }

  // Four blocks of 8 x 8, of which this lane names one line, at (row, k).
  __device__ static void fragment(uint32_t (&r)[4], const T* tile, int row, int k) {
    const T* at = tile + (kTransposed ? k * kLine + row : row * kLine + k);
    if constexpr (kTransposed) ldmatrix_x4_trans(r, at);
    else ldmatrix_x4(r, at);
  }
};

template <typename T, Form form, typename Shape>
struct ProductTile {
  static constexpr int kDepth = Shape::kDepthBytes / static_cast<int>(sizeof(T));
  static constexpr int kWarpRows = Shape::kRows / Shape::kWarpRows, kWarpCols = Shape::kCols / Shape::kWarpCols;
  static constexpr int kRowBlocks = kWarpRows / 16, kColBlocks = kWarpCols / 8;
  using A = OperandTile<T, form == Form::kTN, Shape::kRows, kDepth, Shape::kThreads>;
  using B = OperandTile<T, form != Form::kNT, Shape::kCols, kDepth, Shape::kThreads>;
  static constexpr int kStage = A::kElements + B::kElements;
  static constexpr size_t kSharedBytes = sizeof(T) * kStage * Shape::kStages;
  static_assert(kGradientRun % kDepth == 0);

  using Accumulators = float[kRowBlocks][kColBlocks][4];

  // Walks the terms that touch the tile's rows, kDepth columns at a time.
  struct Cursor {
    const TermRecord *term, *end;
    int row, k = 0;

    __device__ Cursor(const TermRecord* first, const TermRecord* last, int row_) : term(first), end(last), row(row_) {
      skip();
    }
    __device__ void skip() {
      while (term < end && (term->begin >= row + Shape::kRows || term->end <= row || term->k == 0)) ++term;
    }
    __device__ bool valid() const { return term < end; }
    __device__ bool ends_term() const { return k + kDepth >= term->k; }
    __device__ void advance() {
      k += kDepth;
      if (k < term->k) return;
      ++term;
      k = 0;
      skip();
    }
  };

  // acc += the staged columns; `left` of them have values.
  __device__ static void multiply(Accumulators& acc, const T* stage, int left) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp % Shape::kWarpRows * kWarpRows, col = warp / Shape::kWarpRows * kWarpCols;
    if constexpr (sizeof(T) == sizeof(float)) multiply_floats(acc, stage, left, row + lane / 4, col + lane % 4 * 2);
    else multiply_fragments(acc, stage, left, row, col);
  }

  __device__ static void multiply_floats(Accumulators& acc, const T* stage, int left, int row, int col) {
#pragma unroll 1
    for (int k = 0; k < kDepth && k < left; k += 2) {
      float2 b[kColBlocks][2];
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) b[j][e] = B::two(stage + A::kElements, col + 8 * j + e, k);
      }
#pragma unroll
      for (int i = 0; i < 2 * kRowBlocks; ++i) {
        const float2 a = A::two(stage, row + 8 * i, k);
#pragma unroll
        for (int j = 0; j < kColBlocks; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = acc[i / 2][j][i % 2 * 2 + e];
            sum = fmaf(a.x, b[j][e].x, sum);
            sum = fmaf(a.y, b[j][e].y, sum);
          }
        }
      }
    }
  }

  // Lane 8 q + i of an ldmatrix names line i of block q. The blocks of a: rows + 8 (q odd), k + 8 (q >= 2); of b, two
  // fragments: k + 8 (q odd), columns + 8 (q >= 2).
  __device__ static void multiply_fragments(Accumulators& acc, const T* stage, int left, int row, int col) {
    const int lane = threadIdx.x % 32, i8 = lane % 8, odd = lane / 8 % 2 * 8, upper = lane / 16 * 8;
    const int a_row = row + odd + (A::kTransposed ? 0 : i8), a_k = upper + (A::kTransposed ? i8 : 0);
    const int b_col = col + (kColBlocks > 1 ? upper : 0) + (B::kTransposed ? 0 : i8);
    const int b_k = odd + (B::kTransposed ? i8 : 0);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      if (k >= left) break;
      uint32_t b[(kColBlocks + 1) / 2][4];
#pragma unroll
      for (int j = 0; j < kColBlocks; j += 2) {
        B::fragment(b[j / 2], stage + A::kElements, b_col + 8 * j, k + b_k);
      }
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        uint32_t a[4];
        A::fragment(a, stage, a_row + 16 * i, k + a_k);
#pragma unroll
        for (int j = 0; j < kColBlocks; ++j) {
          const uint32_t own[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16<T>(acc[i][j], a, own);
        }
      }
    }
  }

  // f(row, column, the accumulators of it and the next column)
  template <typename F>
  __device__ static void visit_pairs(Accumulators& acc, int row0, int col0, F f) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = row0 + warp % Shape::kWarpRows * kWarpRows + lane / 4;
    const int col = col0 + warp / Shape::kWarpRows * kWarpCols + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) f(row + 8 * i, col + 8 * j, &acc[i / 2][j][i % 2 * 2]);
    }
  }
};

template <typename T>
__device__ inline void load_pair(float (&values)[2], const Target& from, int64_t row, int col, int cols) {
  if (from.is_float) {
    load_piece(values, static_cast<const float*>(from.data) + row * from.stride, col, cols, from.aligned);
  } else {
    load_piece(values, static_cast<const T*>(from.data) + row * from.stride, col, cols, from.aligned);
  }
}

template <typename T>
__device__ inline void store_pair(const float (&values)[2], const Target& to, int64_t row, int col, int cols) {
  if (to.is_float) store_piece(values, static_cast<float*>(to.data) + row * to.stride, col, cols, to.aligned);
  else store_piece(values, static_cast<T*>(to.data) + row * to.stride, col, cols, to.aligned);
}

// The epilogue of a run of kTN for two neighbouring elements.
__device__ inline void add_pair(const Target& out, int row, int col, int cols, const float* sums) {
  float* at = static_cast<float*>(out.data) + row * out.stride + col;
  if (out.aligned && col + 1 < cols) {
    float2 both = *reinterpret_cast<const float2*>(at);
    both.x += sums[0];
    both.y += sums[1];
    *reinterpret_cast<float2*>(at) = both;
  } else {
    at[0] += sums[0];
    if (col + 1 < cols) at[1] += sums[1];
  }
}

// The epilogue of two neighbouring elements.
template <typename T>
__device__ inline void finish_pair(const ProductRecord& product, int row, int col, const float* sums) {
  // The sum of a row that no term touched, or of zeros, is +0 whatever else was in the tile.
  float values[2] = {sums[0] + 0.0f, sums[1] + 0.0f};
  if (product.gates.column) {
    if (product.raw.data) store_pair<T>(values, product.raw, row, col, product.cols);
    const float* gates = product.gates.routing + row * product.gates.stride;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (col + e < product.cols) values[e] = values[e] * gates[product.gates.column[col + e]] * product.scale[col + e];
    }
    if (product.operand.data) store_pair<T>(values, product.operand, row, col, product.cols);
    if (product.rest.data) {
      const float rest[2] = {values[0] - widen(narrow<T>(values[0])), values[1] - widen(narrow<T>(values[1]))};
      store_pair<T>(rest, product.rest, row, col, product.cols);
    }
  }
  if (product.add.data) {
    float more[2];
    load_pair<T>(more, product.add, row, col, product.cols);
    values[0] += more[0];
    values[1] += more[1];
  }
  store_pair<T>(values, product.out, row, col, product.cols);
}

__device__ inline const ProductRecord& product_of(const ProductTable& table, int tile) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.products[middle].first_tile <= tile) low = middle;
    else high = middle;
  }
  return table.products[low];
}

__device__ inline int draw_tile(const ProductTable& table) {
  if (table.early_tiles == 0) return static_cast<int>(blockIdx.x);
  __shared__ int drawn;
  if (threadIdx.x == 0) drawn = static_cast<int>(atomicAdd(&table.counters[0], 1u));
  __syncthreads();
  return drawn;
}

__device__ inline void announce_early_tile(const ProductTable& table) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) add_release(&table.counters[1], 1);
}

__device__ inline void wait_for_early_tiles(const ProductTable& table) {
  if (threadIdx.x == 0) {
    while (load_acquire(&table.counters[1]) < static_cast<uint32_t>(table.early_tiles)) spin_pause();
  }
  __syncthreads();
}

// Has a row of [begin, end) a gate that is not zero in columns [first, last)?
__device__ inline bool is_open(const Gates& gates, int begin, int end, int first, int last) {
  int32_t before = -1;
  for (int n = first; n < last; ++n) {
    const int32_t column = gates.column[n];
    if (column == before) continue;
    before = column;
    for (int row = begin; row < end; ++row) {
      if (gates.routing[row * gates.stride + column] != 0) return true;
    }
  }
  return false;
}

template <typename T, Form form, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 256 / Shape::kThreads * 2) multiply_tiles(ProductTable table) {
  using Tile = ProductTile<T, form, Shape>;
  using A = typename Tile::A;
  using B = typename Tile::B;
  constexpr int kAhead = Shape::kStages - 1;

  const int tile = draw_tile(table);
  const ProductRecord& product = product_of(table, tile);
  const int row0 = product.begin + (tile - product.first_tile) % product.row_tiles * Shape::kRows;
  const int col0 = (tile - product.first_tile) / product.row_tiles * Shape::kCols;
  const TermRecord* terms = table.terms + product.first_term;
  T* stages = shared_memory<T>();

  typename Tile::Accumulators acc;
  Tile::visit_pairs(acc, row0, col0, [&](int, int col, float* sums) {
    sums[0] = product.bias && col < product.cols ? product.bias[col] : 0;
    sums[1] = product.bias && col + 1 < product.cols ? product.bias[col + 1] : 0;
  });

  typename Tile::Cursor now(terms, terms + product.terms, row0), ahead = now;
  // Reading weights is what few rows wait for: experts that none of them selects are left out.
  constexpr bool kSelects = form == Form::kNT && Shape::kRows <= 16;
  uint32_t needed_lines = ~0u;
  if (kSelects && product.gates.column && !product.raw.data) {
    const int row_end = row0 + Shape::kRows < product.end ? row0 + Shape::kRows : product.end;
    needed_lines = 0;
    for (int n = 0; n < B::kLines / B::kLineStep; ++n) {
      const int col = col0 + threadIdx.x / B::kLinePieces + n * B::kLineStep;
      if (col < product.cols && is_open(product.gates, row0, row_end, col, col + 1)) needed_lines |= 1u << n;
    }
  }
  bool waited = false;
  const auto copy_next = [&](int index) {
    if (ahead.valid()) {
      const TermRecord& term = *ahead.term;
      if (term.late && !waited) {
        wait_for_early_tiles(table);
        waited = true;
      }
      T* stage = stages + index * Tile::kStage;
      A::copy(stage, term.a, row0, term.begin, term.end, ahead.k, term.k);
      bool needs_column = true;
      if (kSelects && term.gates.column) {
        const int begin = row0 > term.begin ? row0 : term.begin;
        const int end = row0 + Shape::kRows < term.end ? row0 + Shape::kRows : term.end;
        const int first = ahead.k + threadIdx.x % B::kLinePieces * B::kPiece;
        needs_column = is_open(term.gates, begin, end, first, first + B::kPiece < term.k ? first + B::kPiece : term.k);
      }
      B::copy(stage + A::kElements, term.b, col0, 0, product.cols, ahead.k, term.k, {needed_lines, needs_column});
      ahead.advance();
    }
    cp_async_commit();
  };

  for (int stage = 0; stage < kAhead; ++stage) copy_next(stage);
  for (int stage = 0; now.valid(); stage = stage + 1 == Shape::kStages ? 0 : stage + 1) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();
    copy_next(stage == 0 ? kAhead : stage - 1);
    Tile::multiply(acc, stages + stage * Tile::kStage, now.term->k - now.k);
    if constexpr (form == Form::kTN) {
      if (now.ends_term() || (now.k + Tile::kDepth) % kGradientRun == 0) {
        Tile::visit_pairs(acc, row0, col0, [&](int row, int col, float* sums) {
          if (row < product.end && col < product.cols) add_pair(product.out, row, col, product.cols, sums);
          sums[0] = sums[1] = 0;
        });
      }
    }
    now.advance();
  }
  if constexpr (form != Form::kTN) {
    Tile::visit_pairs(acc, row0, col0, [&](int row, int col, const float* sums) {
      if (row < product.end && col < product.cols) finish_pair<T>(product, row, col, sums);
    });
  }
  if (tile < table.early_tiles) announce_early_tile(table);
}

}  // namespace at_moe::cuda
