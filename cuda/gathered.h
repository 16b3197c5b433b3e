// Products of one expert's columns over the rows that select it, with the bits of the same elements of a product over all
// rows (cuda/product.h). Nothing else is written.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/product.h"
#include "cuda/selection.h"

namespace at_moe::cuda {

// Neighbouring columns of the results.
struct ColumnRun {
  int first = 0, count = 0;
  int operand = 0;  // the first one's place in `operand`
};

//   kNT  sum[m, n] = Σ_k a[m, k] b[n, k]; n are lines of b: those of the runs
//   kNN  sum[m, n] = Σ_k a[m, k] b[k, n]; n are columns of b: from b_first on, one run of the results
struct GatheredProduct {
  size_t list = 0;  // index of its rows among the lists of the call
  Matrix a, b;
  int b_first = 0;
  std::vector<ColumnRun> runs;
  const float* scale = nullptr;  // by column; null: only `raw` is written
};

// Where results go, by row and column: the sum, f32; sum · gate · scale, f32; the same as an operand, and what rounding to
// the operand's type took away. Each may be empty.
struct GatheredResults {
  Matrix raw, gated, operand, rest;
};

}  // namespace at_moe::cuda
