// Rows in pieces of a few elements, so that a thread moves 16 bytes at once where the memory is aligned for it. What a
// piece holds does not depend on that, so neither do results.
#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "cuda/number.h"

namespace at_moe::cuda {

template <typename T>
inline constexpr int kPieceElements = 16 / static_cast<int>(sizeof(T));

template <typename T, int n>
struct alignas(n * sizeof(T)) Piece {
  T at[n];
};

// The rows of a matrix of T, for kernels.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  __device__ T* row(int64_t n) const { return data + n * stride; }
};

template <typename T>
Rows<T> rows_of(const Matrix& matrix) {
  return {static_cast<T*>(matrix.data), matrix.stride};
}

// May every row be read in aligned pieces of `elements`?
inline bool in_pieces(const Matrix& matrix, int64_t elements) {
  const auto size = static_cast<int64_t>(size_of(matrix.dtype));
  return reinterpret_cast<uintptr_t>(matrix.data) % static_cast<size_t>(elements * size) == 0 &&
         matrix.stride % elements == 0;
}

// Elements [first, first + n) of a row as f32, zeros from `cols` on. `aligned`: whole pieces may be read at once.
template <int n, typename T>
__device__ inline void load_piece(float (&values)[n], const T* row, int64_t first, int64_t cols, bool aligned) {
  if (aligned && first + n <= cols) {
    const auto piece = *reinterpret_cast<const Piece<T, n>*>(row + first);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = widen(piece.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = first + i < cols ? widen(row[first + i]) : 0.0f;
  }
}

template <int n, typename T>
__device__ inline void store_piece(const float (&values)[n], T* row, int64_t first, int64_t cols, bool aligned) {
  if (aligned && first + n <= cols) {
    Piece<T, n> piece;
#pragma unroll
    for (int i = 0; i < n; ++i) piece.at[i] = narrow<T>(values[i]);
    *reinterpret_cast<Piece<T, n>*>(row + first) = piece;
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (first + i < cols) row[first + i] = narrow<T>(values[i]);
    }
  }
}

}  // namespace at_moe::cuda
