// Sums over runs of rows, and the spreading of one row over a run.
//   sum:    out[r, c] += Σ_{begin_r <= i < end_r} in[i, c], rows ascending
//   spread: out[i, c]  = factor_r in[r, c] for begin_r <= i < end_r   (or += with accumulate)
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"

namespace at_moe {

struct RowRun {
  int64_t begin = 0, end = 0;  // rows of the long side
  int64_t row = 0;             // row of the short side
  float factor = 1;
};

struct SumRows {
  Matrix in, out;  // f32
  std::span<const RowRun> runs;  // host
};

struct SpreadRows {
  Matrix in, out;  // f32
  std::span<const RowRun> runs;  // host
  bool accumulate = false;
};

}  // namespace at_moe
