// The one product of the CPU backend: rows of f32 activations by packed weights, as sums of terms that share one
// accumulator. Forward products, their adapter extension, and the products with the transposed weight are all lists of it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/matrix.h"
#include "cpu/kernels.h"
#include "cpu/weight.h"

namespace at_moe::cpu {

// Rows quantised by IntegerKernels::quantize: the block of 32 inputs b of row n at data + b * block + n * row_bytes.
struct QuantizedRows {
  const char* data = nullptr;
  int64_t block = 0;
};

// Rows whose routing record has one of the gates; no gates: all rows.
struct RowFilter {
  Matrix routing;
  std::vector<int32_t> gates;

  bool operator()(int64_t row) const {
    if (gates.empty()) return true;
    const float* record = routing.row(row);
    for (const int32_t gate : gates) {
      if (record[gate] != 0) return true;
    }
    return false;
  }
};

// Of k. Other rows have zeros there.
struct Range {
  int64_t begin = 0, end = 0;
  RowFilter rows = {};
};

// acc[n] += a[n] · Wᵀ (or a[n] · W when transposed) for n in [begin, end). With quantised rows it is they that are multiplied,
// over all of k; the weight is of q8 then.
struct Term {
  const CpuWeight* weight = nullptr;
  bool transposed = false;
  int64_t begin = 0, end = 0;
  Matrix a;  // [N, k] row-major; row 0 is row 0 of the product
  QuantizedRows quantized;
  std::vector<Range> ranges;  // ascending: the rest of `a` is known to be zero

  int64_t reduction() const { return transposed ? weight->rows() : weight->cols(); }
};

// A finished or fresh block of accumulators: rows [row, row + rows), columns [col, col + cols).
struct Block {
  int64_t row = 0, rows = 0, col = 0, cols = 0;
  float* acc = nullptr;
  int64_t stride = 0;
  float* at(int64_t n) const { return acc + (n - row) * stride; }  // by absolute row
};

struct Product {
  int64_t begin = 0, end = 0, cols = 0;
  std::vector<Term> terms;
  std::function<void(const Block&)> start;  // sets the accumulators; empty: zero
  std::function<void(const Block&)> finish;
  std::vector<RowFilter> panel_rows;  // by panel: of other rows the sums are used as zeros; empty: all are wanted
};

// grad[o][i] += Σ_n g[n][o] x[n][i] over rows [begin, end), in runs of kGradientRun.
struct GradientProduct {
  Matrix g, x;
  int64_t begin = 0, end = 0;
  float* grad = nullptr;
  int64_t stride = 0;
};

}  // namespace at_moe::cpu
