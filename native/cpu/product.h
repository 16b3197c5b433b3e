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

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows converted by DotKernels::convert: block b of row n at data + b * block + (n - first) * row_bytes.
struct ConvertedRows {
  const char* data = nullptr;
  int64_t block = 0, first = 0;
};

// The forms of an operand that products read.
struct Forms {
  bool bytes = false, pairs = false;
};

// The left side of products, in the forms that they read. Row 0 is row 0 of the product.
struct Operand {
  Matrix rows;                 // [N, k] row-major
  ConvertedRows bytes, pairs;  // for weights of q8 and of bf16, when there are kernels for them
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

// acc[n] += a[n] · Wᵀ (or a[n] · W when transposed) for n in [begin, end).
struct Term {
  const CpuWeight* weight = nullptr;
  bool transposed = false;
  int64_t begin = 0, end = 0;
  Operand a;
  std::vector<Range> ranges;  // ascending: the rest of `a` is known to be zero; with converted rows each begins a block

  // The rows that kernels of dot products read.
  ConvertedRows& converted() { return is_blocks(weight->storage()) ? a.bytes : a.pairs; }
  const ConvertedRows& converted() const { return is_blocks(weight->storage()) ? a.bytes : a.pairs; }
};

// A weight's storage alone decides on the kernels of its products, so that all numbers of rows have the same bits.
struct ProductKernels {
  const Kernels& floats;
  const DotKernels* bytes;   // null: of no weights
  const PairKernels* pairs;  // likewise

  // Those of converted rows; null: the product is one of f32.
  const DotKernels* dots(const Weight& weight, bool transposed) const {
    if (weight.storage() == Storage::bf16) return pairs;
    return is_blocks(weight.storage()) && !transposed ? bytes : nullptr;
  }
  void add_form(const Weight& weight, bool transposed, Forms* forms) const {
    if (dots(weight, transposed)) (is_blocks(weight.storage()) ? forms->bytes : forms->pairs) = true;
  }
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
