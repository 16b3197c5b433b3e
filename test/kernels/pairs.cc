// Products of pairs of bf16 (cpu/kernels.h, PairKernels): within the split of a value and the roundings of a sum in some
// order, and that order the same for all numbers of rows and panels.
#include <algorithm>
#include <cstring>

#include "test/kernels/accumulators.h"
#include "test/kernels/panels.h"

namespace at_moe::cpu {

namespace {

constexpr int64_t kRows = 33, kPanels = 9;

Floats rows_of(int64_t cols) {
  Floats x = Random(2).uniform(kRows * cols);
  for (int64_t i = 0; i < cols; ++i) x[static_cast<size_t>(1 * cols + i)] *= i % 3 == 0 ? 0x1p40f : 0x1p-40f;
  x[static_cast<size_t>(2 * cols)] = kNan;
  x[static_cast<size_t>(3 * cols)] = kInfinity;
  return x;
}

struct ConvertedRows {
  Bytes bytes;
  int64_t block;
};

ConvertedRows convert(const PairKernels& kernels, const Floats& x) {
  const int64_t cols = static_cast<int64_t>(x.size()) / kRows, blocks = (cols + kDotBlock - 1) / kDotBlock;
  ConvertedRows rows{{}, kRows * kernels.row_bytes + 64};
  rows.bytes.resize(static_cast<size_t>(blocks * rows.block));
  for (int64_t r = 0; r < kRows; ++r) {
    kernels.convert(x.data() + r * cols, cols, rows.bytes.data() + r * kernels.row_bytes, rows.block);
  }
  return rows;
}

Dots product(const Panels& weight, const ConvertedRows& rows, int64_t begin, int64_t stride) {
  Dots dots;
  dots.begin = begin;
  dots.blocks = (weight.cols + kDotBlock - 1) / kDotBlock - begin;
  dots.inputs = weight.cols;
  dots.w = weight.panel(0);
  dots.w_panel = weight.panel_bytes;
  dots.a = rows.bytes.data();
  dots.a_block = rows.block;
  dots.acc_row = stride;
  return dots;
}

// Two parts of a value, products of two inputs that may be summed apart, and a set may round each sum once more or to
// odd: four times an ulp for an input.
void expect_product(const float* x, const Panels& weight, int64_t output, int64_t first, float before, float after) {
  double sum = before, magnitude = 0;
  for (int64_t i = first; i < weight.cols; ++i) {
    const double term = static_cast<double>(x[i - first]) * weight.value(output, i);
    sum += term;
    magnitude += std::abs(term);
  }
  if (!std::isfinite(sum)) {
    return expect(same(static_cast<float>(sum), after), "pairs: ", after, ", expected ", sum);
  }
  const double roundings = static_cast<double>(4 * (weight.cols - first) + 4) * 0x1p-23;
  expect_near(after, sum, magnitude * 0x1p-17 + (magnitude + std::abs(before)) * roundings, "pairs: output ", output,
              " of ", weight.cols, " inputs from ", first);
}

void check_blocks(const KernelSet& set, const Panels& weight, int64_t begin) {
  const int64_t first = begin * kDotBlock, inputs = weight.cols - first;
  const Floats x = rows_of(inputs);
  const ConvertedRows rows = convert(*set.pairs, x);
  Accumulators acc(kRows, kPanels, 3);
  Dots dots = product(weight, rows, begin, acc.stride);
  dots.rows = 1;
  dots.panels = kPanels;
  for (int64_t r = 0; r < kRows; ++r, dots.a += set.pairs->row_bytes) {
    dots.acc = &acc(r, 0);
    set.pairs->multiply(dots);
    for (int64_t o = 0; o < 16 * kPanels; ++o) {
      const float before = acc.before[static_cast<size_t>(r * acc.stride + o)];
      expect_product(x.data() + r * inputs, weight, o, first, before, acc(r, o));
    }
  }
  dots.a = rows.bytes.data();
  for (dots.rows = 1; dots.rows <= kRows; ++dots.rows) {
    for (dots.panels = 1; dots.panels <= kPanels; ++dots.panels) {
      const auto multiply = [&](float* out) {
        dots.acc = out;
        set.pairs->multiply(dots);
      };
      acc.expect_part(dots.rows, dots.panels, multiply, "pairs of ", weight.cols, " from block ", begin);
    }
  }
}

// The same panels and rows with zeros behind them.
void check_zeros(const KernelSet& set, int64_t cols) {
  const Panels short_weight = make_panels(Storage::bf16, kPanels, cols, 4);
  Panels long_weight = make_panels(Storage::bf16, kPanels, cols + 2 * kDotBlock, 4);
  std::fill(long_weight.bytes.begin(), long_weight.bytes.end(), '\0');
  const Floats x = Random(5).uniform(kRows * cols);
  Floats longer(static_cast<size_t>(kRows * long_weight.cols));
  for (int64_t p = 0; p < kPanels; ++p) {
    std::copy_n(short_weight.panel(p), short_weight.panel_bytes,
                long_weight.bytes.begin() + p * long_weight.panel_bytes);
  }
  for (int64_t r = 0; r < kRows; ++r) std::copy_n(x.begin() + r * cols, cols, longer.begin() + r * long_weight.cols);
  Floats sums[2];
  for (const bool zeros : {false, true}) {
    const Panels& weight = zeros ? long_weight : short_weight;
    const ConvertedRows rows = convert(*set.pairs, zeros ? longer : x);
    Dots dots = product(weight, rows, 0, 16 * kPanels);
    sums[zeros].resize(static_cast<size_t>(kRows * 16 * kPanels));
    dots.rows = kRows;
    dots.panels = kPanels;
    dots.acc = sums[zeros].data();
    set.pairs->multiply(dots);
  }
  expect_same(sums[1], sums[0], "pairs of ", cols, " with blocks of zeros");
}

}  // namespace

void check_pairs(const KernelSet& set) {
  for (const int64_t cols : {1, 2, 31, 32, 70, 161}) {
    const Panels weight = make_panels(Storage::bf16, kPanels, cols, 1);
    check_blocks(set, weight, 0);
    if (cols > kDotBlock) check_blocks(set, weight, 1);
    check_zeros(set, cols);
  }
}

void check_turn(const KernelSet& set) {
  constexpr int64_t kCols = 41;
  const Panels weight = make_panels(Storage::bf16, 1, kCols, 6);
  for (int64_t begin = 0; begin < kCols; begin += 2) {
    for (int64_t count = 1; count <= std::min<int64_t>(kCols - begin, 16); ++count) {
      if (count % 2 != 0 && begin + count < kCols) continue;
      Bytes actual(8 * 64, '\x5A'), expected(8 * 64, '\0');
      for (int64_t o = 0; o < 16; ++o) {
        for (int64_t i = 0; i < count; ++i) {
          const uint16_t bits = to_half_bits(DType::bf16, weight.value(o, begin + i));
          std::memcpy(expected.data() + o / 2 * 64 + i * 4 + o % 2 * 2, &bits, 2);
        }
      }
      set.pairs->turn(weight.panel(0), begin, count, actual.data());
      expect_same(actual, expected, "turn from ", begin, " count ", count);
    }
  }
}

}  // namespace at_moe::cpu
