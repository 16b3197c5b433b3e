// Tiles of the attention kernels. The operands lie in shared memory, kStride elements from row to row and padded with
// zeros to kDim columns; scores and sums are f32, spread over the threads of a block:
//   score       s [kRows, kCols] = a [kRows, kDim] · b [kCols, kDim]ᵀ
//   store       w [kRows, kCols] in T, from values placed as s
//   accumulate  o [kRows, kDim] += w [kRows, kCols] · b [kCols, kDim]
// A thread holds kThreadRows x kThreadCols of s, at rows row(i) and columns col(j), and of o the columns dim(j) of the
// same rows. kRowLanes adjacent lanes share a row, and kSplits warps take their part of its columns. Every element is
// summed in an order that neither its row nor the shape of the tile changes: in k-steps of 16 on tensor cores, one by
// one on fma.
#pragma once

#include <type_traits>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

constexpr int64_t kMaxHeadDim = 256;

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / 32; }

// Tensor cores: kRowTiles of 16 rows by kSplits parts of the columns, a warp each.
template <typename Number, int kDimension, int kRowTiles, int kParts, int kColumns>
struct MmaTile {
  using T = Number;
  static constexpr int kDim = kDimension, kRows = 16 * kRowTiles, kCols = kColumns, kSplits = kParts;
  static constexpr int kThreads = 32 * kRowTiles * kSplits;
  static constexpr int kPad = 8, kStride = kDim + kPad;  // the eight rows of a matrix lie on different banks
  static constexpr int kWarpCols = kCols / kSplits, kWarpDims = (kDim / kSplits + 15) / 16 * 16;
  static constexpr int kThreadRows = 2, kThreadCols = kWarpCols / 4, kThreadDims = kWarpDims / 4;
  static constexpr int kRowLanes = 4, kGroupCols = 4;
  static_assert(kWarpCols % 16 == 0 && kDim % 16 == 0);

  template <int kTiles>
  struct Fragments {
    float value[kTiles][4];
    __device__ float& at(int i, int j) { return value[j / 2][2 * i + j % 2]; }
  };
  using Scores = Fragments<kWarpCols / 8>;
  using Sums = Fragments<kWarpDims / 8>;

  static __device__ int split() { return warp() / kRowTiles; }
  static __device__ int first_row() { return warp() % kRowTiles * 16; }
  static __device__ int row(int i) { return first_row() + lane() / 4 + 8 * i; }
  static __device__ int col(int j) { return split() * kWarpCols + fragment_column(j); }
  static __device__ int dim(int j) { return split() * kWarpDims + fragment_column(j); }

  static __device__ void score(const T* a, const T* b, Scores& s) {
    for (auto& tile : s.value) {
      for (float& value : tile) value = 0;
    }
    const T* left = a + (first_row() + lane() % 16) * kStride + lane() / 16 * 8;
    const T* right = b + (split() * kWarpCols + lane() / 16 * 8 + lane() % 8) * kStride + lane() / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kDim; k += 16) {
      uint32_t rows[4];
      ldmatrix_x4(rows, left + k);
#pragma unroll
      for (int n = 0; n < kWarpCols; n += 16) {
        uint32_t cols[4];
        ldmatrix_x4(cols, right + n * kStride + k);
        mma_m16n8k16<T>(s.value[n / 8], rows, {cols[0], cols[1]});
        mma_m16n8k16<T>(s.value[n / 8 + 1], rows, {cols[2], cols[3]});
      }
    }
  }

  static __device__ void store(Scores& s, T* w, int stride) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadCols; j += 2) {
        *reinterpret_cast<uint32_t*>(w + row(i) * stride + col(j)) =
            narrow<T>(s.at(i, j)).bits | uint32_t{narrow<T>(s.at(i, j + 1)).bits} << 16;
      }
    }
  }

  static __device__ void accumulate(const T* w, int stride, const T* b, Sums& o) {
    const T* left = w + (first_row() + lane() % 16) * stride + lane() / 16 * 8;
    const T* right = b + lane() % 16 * kStride + split() * kWarpDims + lane() / 16 * 8;
#pragma unroll 2
    for (int k = 0; k < kCols; k += 16) {
      uint32_t rows[4];
      ldmatrix_x4(rows, left + k);
#pragma unroll
      for (int n = 0; n < kWarpDims; n += 16) {
        if (kWarpDims * kSplits > kDim && split() * kWarpDims + n >= kDim) break;
        uint32_t cols[4];
        ldmatrix_x4_trans(cols, right + k * kStride + n);
        mma_m16n8k16<T>(o.value[n / 8], rows, {cols[0], cols[1]});
        mma_m16n8k16<T>(o.value[n / 8 + 1], rows, {cols[2], cols[3]});
      }
    }
  }

 private:
  static __device__ int fragment_column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
};

// f32: a warp has kWarpRows rows, a lane one column of the scores and kDim / 32 of the sums.
template <int kDimension, int kWarpRows>
struct FmaTile {
  using T = float;
  static constexpr int kWarps = 4;
  static constexpr int kDim = kDimension, kRows = kWarps * kWarpRows, kCols = 32, kSplits = 1, kThreads = 32 * kWarps;
  static constexpr int kPad = 4, kStride = kDim + kPad;
  static constexpr int kThreadRows = kWarpRows, kThreadCols = 1, kThreadDims = kDim / 32;
  static constexpr int kRowLanes = 32, kGroupCols = 1;

  template <int kValues>
  struct Values {
    float value[kWarpRows][kValues];
    __device__ float& at(int i, int j) { return value[i][j]; }
  };
  using Scores = Values<kThreadCols>;
  using Sums = Values<kThreadDims>;

  static __device__ int split() { return 0; }
  static __device__ int row(int i) { return warp() * kWarpRows + i; }
  static __device__ int col(int) { return lane(); }
  static __device__ int dim(int j) { return lane() + 32 * j; }

  static __device__ void score(const float* a, const float* b, Scores& s) {
    for (auto& value : s.value) value[0] = 0;
    const auto* right = reinterpret_cast<const float4*>(b + lane() * kStride);
#pragma unroll 2
    for (int k = 0; k < kDim / 4; ++k) {
      const float4 y = right[k];
#pragma unroll
      for (int i = 0; i < kWarpRows; ++i) {
        const float4 x = reinterpret_cast<const float4*>(a + row(i) * kStride)[k];
        float& sum = s.value[i][0];
        sum = fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
      }
    }
  }

  static __device__ void store(Scores& s, float* w, int stride) {
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) w[row(i) * stride + lane()] = s.value[i][0];
  }

  static __device__ void accumulate(const float* w, int stride, const float* b, Sums& o) {
#pragma unroll 4
    for (int k = 0; k < kCols; ++k) {
#pragma unroll
      for (int j = 0; j < kThreadDims; ++j) {
        const float y = b[k * kStride + dim(j)];
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) o.value[i][j] = fmaf(w[row(i) * stride + k], y, o.value[i][j]);
      }
    }
  }
};

template <class Tile>
__device__ void clear(typename Tile::Sums& sums) {
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadDims; ++j) sums.at(i, j) = 0;
  }
}

// Copies kRows rows of `dim` elements; row_at(r) is where row r begins, null for zeros. In pieces of 16 bytes that
// land when their group is waited for, where `pieces` says that every row begins at a multiple of them, else at once.
template <class Tile, int kRows, typename RowAt>
__device__ void load_rows(typename Tile::T* to, const typename Tile::T* memory, int dim, bool pieces, RowAt&& row_at) {
  using T = typename Tile::T;
  if (pieces) {
    constexpr int kPiece = 16 / sizeof(T), kRowPieces = Tile::kDim / kPiece;
#pragma unroll 1
    for (int index = threadIdx.x; index < kRows * kRowPieces; index += Tile::kThreads) {
      const int r = index / kRowPieces, c = index % kRowPieces * kPiece;
      const T* from = c < dim ? row_at(r) : nullptr;
      cp_async16(to + r * Tile::kStride + c, from ? from + c : memory, from ? 16 : 0);
    }
  } else {
    for (int index = threadIdx.x; index < kRows * Tile::kDim; index += Tile::kThreads) {
      const int r = index / Tile::kDim, c = index % Tile::kDim;
      const T* from = c < dim ? row_at(r) : nullptr;
      to[r * Tile::kStride + c] = from ? from[c] : T{};
    }
  }
}

// May every head of every row be read in pieces of 16 bytes?
inline bool heads_in_pieces(const Matrix& matrix, int64_t head_dim) {
  const auto piece = static_cast<int64_t>(16 / size_of(matrix.dtype));
  return head_dim % piece == 0 && in_pieces(matrix, piece);
}

// Calls f with the padded head_dim of a kernel, as a type.
template <typename F>
void dispatch_head_dim(int64_t dim, F&& f) {
  require(dim > 0 && dim <= kMaxHeadDim, "attention: head_dim ", dim, " is above ", kMaxHeadDim);
  if (dim <= 32) return f(std::integral_constant<int, 32>{});
  if (dim <= 64) return f(std::integral_constant<int, 64>{});
  if (dim <= 96) return f(std::integral_constant<int, 96>{});
  if (dim <= 128) return f(std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{});
}

}  // namespace at_moe::cuda
