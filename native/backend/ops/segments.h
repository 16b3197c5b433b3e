// Sums over runs of rows, and the spreading of one record over a run.
//   sum:    out[row_r, c] += Σ_{begin_r <= i < end_r} in[i, c], rows ascending
//   spread: out[i, c] (+)= factor_r source_r[c] for begin_r <= i < end_r, c < cols_r
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"

namespace at_moe {

struct SumRows {
  struct Run {
    int64_t begin = 0, end = 0;  // rows of in
    int64_t row = 0;             // of out; runs of one call have different ones
  };
  Matrix in, out;             // f32, same columns
  std::span<const Run> runs;  // host
};

struct SpreadRows {
  struct Run {
    int64_t begin = 0, end = 0;     // rows of out
    const float* source = nullptr;  // device
    int64_t cols = 0;
    float factor = 1;
  };
  Matrix out;                 // f32
  std::span<const Run> runs;  // host
  bool accumulate = false;
};

}  // namespace at_moe
