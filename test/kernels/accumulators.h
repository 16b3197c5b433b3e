// The accumulators of a product of all rows by all panels. An element depends on its own row and output alone, so that
// those of fewer rows and panels are a part of them, and what lies around the part stays as it was.
#pragma once

#include <span>

#include "test/kernels/check.h"

namespace at_moe::cpu {

class Accumulators {
 public:
  Accumulators(int64_t rows, int64_t panels, uint32_t seed)
      : stride(16 * panels + 5), before(Random(seed).uniform(rows * stride)), after(before) {}

  float& operator()(int64_t row, int64_t output) { return after[static_cast<size_t>(row * stride + output)]; }

  // Multiply(acc) adds the product of the first `rows` rows by the first `panels` panels.
  template <typename Multiply, typename... Where>
  void expect_part(int64_t rows, int64_t panels, Multiply&& multiply, const Where&... where) const {
    Floats actual = before, expected = before;
    for (int64_t r = 0; r < rows; ++r) {
      const auto first = after.begin() + r * stride;
      std::copy(first, first + 16 * panels, expected.begin() + r * stride);
    }
    multiply(actual.data());
    expect_same(actual, expected, where..., ", ", rows, " rows, ", panels, " panels");
  }

  const int64_t stride;
  const Floats before;

 private:
  Floats after;
};

// acc = a b + acc as the set computes it.
inline void multiply_add(const KernelSet& set, float a, float b, float* acc) {
  *acc = fuses(set) ? std::fma(a, b, *acc) : a * b + *acc;
}

}  // namespace at_moe::cpu
