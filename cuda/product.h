// The one product of the CUDA backend, as its callers describe it: sums of terms on one accumulator, then an epilogue.
//   out[m, n] = gate(bias[n] + Σ_terms Σ_k a[m, k] b[n, k]) + add[m, n]
// A product element takes its terms in order and k ascending, in blocks of 32 where b is of q8 (backend/ops/linear.h), so its
// bits depend on neither the rows nor the tiles.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "core/matrix.h"
#include "cuda/block_matrix.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

// How the operands of all terms lie in memory, row-major.
enum class Form {
  kNT,  // a [m, k], b [n, k]
  kNN,  // a [m, k], b [k, n]
  kTN,  // a [k, m], b [k, n]; no epilogue: runs of kGradientRun are summed from zero and added to out, f32
};

// The gate of column n in row m is routing[m * stride + column[n]]. No columns: no gates.
struct Gates {
  const float* routing = nullptr;
  int64_t stride = 0;
  const int32_t* column = nullptr;
};

// A weight as an operand: numbers, or blocks of q8, which have [n, k] in kNT and [k, n] in kNN.
using WeightView = std::variant<Matrix, BlockMatrix>;

// Row 0 of `a` (column 0 for kTN) is row 0 of the product; rows outside of [begin, end) get nothing. Matrices are
// `is_operand` of the product's type.
struct Term {
  Matrix a;
  WeightView b;
  int64_t begin = 0, end = 0;
  bool late = false;  // `a` is written by an early product of the same launch
  Gates gates = {};   // where the gate of a column k is zero, so is `a`
};

struct Product {
  int64_t begin = 0, end = 0, cols = 0;  // rows [begin, end)
  std::vector<Term> terms;
  const float* bias = nullptr;  // [cols]
  Matrix out, add;              // `add` may be empty, or `out` itself

  // With gates the sum goes into `raw`, if there is one, and sum · gate · scale[n] into `out` and `operand`, which late
  // terms read; `rest`, if there is one, gets what rounding to the operand's type took away.
  Gates gates = {};
  const float* scale = nullptr;
  Matrix raw, operand, rest;
};

// Can its rows be copied in pieces of 16 bytes?
inline bool is_operand(const Matrix& matrix, DType type) {
  return matrix.dtype == type && in_pieces(matrix, 16 / static_cast<int64_t>(size_of(type)));
}

// The columns of an operand of `cols` values with others behind it.
inline int64_t operand_cols(int64_t cols, DType type) {
  const int64_t piece = 16 / static_cast<int64_t>(size_of(type));
  return (cols + piece - 1) / piece * piece;
}

}  // namespace at_moe::cuda
