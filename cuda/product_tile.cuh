// A tile of a product (cuda/product.cuh): its operands' next kDepth columns in shared memory, and the multiplication of
// what is there. Warps share the tile; accumulators are in the fragments of mma.m16n8k16 for every type:
//   acc[i][j][e] of lane 4 g + t: row 16 i + 8 (e / 2) + g, column 8 j + 2 t + e % 2 of the warp's part
// f16 and bf16 multiply on tensor cores in steps of 16, f32 by fused multiply-adds.
#pragma once

#include <cstdint>

#include "backend/ops/linear.h"
#include "cuda/block_tile.cuh"
#include "cuda/piece.h"
#include "cuda/product.h"

namespace at_moe::cuda {

struct Operand {
  const void* data;
  int64_t stride;
};

struct TermRecord {
  Operand a, b;
  BlockOperand blocks;  // instead of b
  int begin, end, k;
  bool late;
  Gates gates;
  const uint8_t* open;
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

  // The same of lines along k that lie anywhere: of this thread's lines those of the operand named, -1 becomes zeros.
  static constexpr int kCopies = kLines / kLineStep;
  __device__ static void gather(T* tile, const Operand& operand, const int (&lines)[kCopies], int k, int k_end) {
    static_assert(!kTransposed);
    const int line = threadIdx.x / kLinePieces, at = threadIdx.x % kLinePieces * kPiece;
    const int left = k_end - k - at;
    const int bytes = (left < 0 ? 0 : left < kPiece ? left : kPiece) * static_cast<int>(sizeof(T));
    const T* data = static_cast<const T*>(operand.data);
    T* to = tile + line * kLine + at;
#pragma unroll
    for (int n = 0; n < kCopies; ++n) {
      const bool inside = bytes > 0 && lines[n] >= 0;
      cp_async16(to + n * kLineStep * kLine, inside ? data + lines[n] * operand.stride + k + at : data,
                 inside ? bytes : 0);
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
  using Blocks =
      BlockTile<T, B::kTransposed ? kDepth : Shape::kCols, B::kTransposed ? Shape::kCols : kDepth, Shape::kThreads>;
  static_assert(static_cast<int>(sizeof(T)) * B::kElements >= Blocks::kBytes);
  static constexpr int kStage = A::kElements + B::kElements;
  static constexpr size_t kSharedBytes = sizeof(T) * kStage * Shape::kStages;
  static_assert(kGradientRun % kDepth == 0);

  using Accumulators = float[kRowBlocks][kColBlocks][4];

  // A term may say which blocks of 16 rows by 16 columns of `a` are not all zeros. Of a step of kDepth columns, bit
  // kTileBlocks * (column block) + row block; kAllOpen where the term does not say.
  static constexpr int kTileBlocks = Shape::kRows / 16;
  static constexpr uint32_t kAllOpen = ~0u;
  static constexpr bool kSkips = form != Form::kTN && kTileBlocks > 1 && sizeof(T) == 2;  // f32 has no register left

  // Walks the terms that touch the tile's rows, kDepth columns at a time, past steps that are all zeros.
  struct Cursor {
    const TermRecord *term, *end;
    int row, k = 0;
    uint32_t open = kAllOpen;

    __device__ Cursor(const TermRecord* first, const TermRecord* last, int row_) : term(first), end(last), row(row_) {
      skip();
      find_open();
    }
    __device__ void skip() {
      while (term < end && (term->begin >= row + Shape::kRows || term->end <= row || term->k == 0)) ++term;
    }
    __device__ void next() {
      k += kDepth;
      if (k < term->k) return;
      ++term;
      k = 0;
      skip();
    }
    __device__ void find_open() {
      if constexpr (!kSkips) return;
      for (; valid(); next()) {
        open = term->open ? open_blocks() : kAllOpen;
        if (open != 0) return;
      }
    }
    __device__ uint32_t open_blocks() const {
      constexpr int kSteps = kDepth / 16;
      static_assert(kTileBlocks * kSteps < 32);
      const int lane = threadIdx.x % 32, block = row / 16 + lane % kTileBlocks, step = k / 16 + lane / kTileBlocks;
      const int steps = (term->k + 15) / 16;
      const bool inside =
          lane < kTileBlocks * kSteps && step < steps && block >= term->begin / 16 && block * 16 < term->end;
      return __ballot_sync(~0u, inside && term->open[block * steps + step] != 0);
    }
    __device__ bool valid() const { return term < end; }
    __device__ bool ends_term() const { return k + kDepth >= term->k; }
    __device__ void advance() {
      next();
      find_open();
    }
  };

  // acc += the columns staged in tiles of A and W; `left` of them have values. Blocks that are not open may be left out.
  template <typename W>
  __device__ static void multiply(Accumulators& acc, const T* a, const T* w, int left, uint32_t open = kAllOpen) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp % Shape::kWarpRows * kWarpRows, col = warp / Shape::kWarpRows * kWarpCols;
    if constexpr (sizeof(T) == sizeof(float)) {
      multiply_floats<W>(acc, a, w, left, row + lane / 4, col + lane % 4 * 2);
    } else if (!kSkips || open == kAllOpen) {
      multiply_fragments<W, false>(acc, a, w, left, row, col, open);
    } else {
      multiply_fragments<W, true>(acc, a, w, left, row, col, open >> row / 16);
    }
  }

  template <typename W>
  __device__ static void multiply_floats(Accumulators& acc, const T* a_tile, const T* w, int left, int row, int col) {
#pragma unroll 1
    for (int k = 0; k < kDepth && k < left; k += 2) {
      float2 b[kColBlocks][2];
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) b[j][e] = W::two(w, col + 8 * j + e, k);
      }
#pragma unroll
      for (int i = 0; i < 2 * kRowBlocks; ++i) {
        const float2 a = A::two(a_tile, row + 8 * i, k);
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
  template <typename W, bool kSparse>
  __device__ static void multiply_fragments(Accumulators& acc, const T* a_tile, const T* w, int left, int row, int col,
                                            uint32_t open) {
    const int lane = threadIdx.x % 32, i8 = lane % 8, odd = lane / 8 % 2 * 8, upper = lane / 16 * 8;
    const int a_row = row + odd + (A::kTransposed ? 0 : i8), a_k = upper + (A::kTransposed ? i8 : 0);
    if constexpr (std::is_same_v<W, Blocks>) return Blocks::template multiply<A>(acc, a_tile, w, left, a_row, a_k, col);
    const int b_col = col + (kColBlocks > 1 ? upper : 0) + (B::kTransposed ? 0 : i8);
    const int b_k = odd + (B::kTransposed ? i8 : 0);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      if (k >= left) break;
      uint32_t b[(kColBlocks + 1) / 2][4];
#pragma unroll
      for (int j = 0; j < kColBlocks; j += 2) {
        B::fragment(b[j / 2], w, b_col + 8 * j, k + b_k);
      }
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        if (kSparse && !(open >> (k / 16 * kTileBlocks + i) & 1)) continue;
        uint32_t a[4];
        A::fragment(a, a_tile, a_row + 16 * i, k + a_k);
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

}  // namespace at_moe::cuda
