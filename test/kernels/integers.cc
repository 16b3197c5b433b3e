// Products of bytes (cpu/kernels.h, IntegerKernels): bit for bit, from the row of f32 to the accumulator.
#include <algorithm>

#include "test/kernels/accumulators.h"
#include "test/kernels/panels.h"

namespace at_moe::cpu {

namespace {

constexpr int64_t kRows = 33, kPanels = 9;

struct Block {
  float scale = 0;
  int integers[kQ8Block] = {};
};

Block quantize_block(const float* x, int64_t count) {
  Block block;
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return {kNan};
    largest = std::max(largest, std::abs(x[i]));
  }
  if (largest < 0x1p-119f) return block;
  block.scale = largest / 127.0f;
  const float steps = 127.0f / largest;
  for (int64_t i = 0; i < count; ++i) block.integers[i] = static_cast<int>(std::nearbyint(x[i] * steps));
  return block;
}

// Rows that are not all alike: large and small blocks, values that are not finite, ties.
Floats rows_of(int64_t cols) {
  Random random(2);
  Floats x = random.uniform(kRows * cols);
  const auto fill = [&](int64_t row, float value, int64_t every) {
    for (int64_t i = 0; i < cols; i += every) x[static_cast<size_t>(row * cols + i)] = value;
  };
  fill(1, 0, 1);
  fill(2, 1e30f, 40);
  fill(3, kNan, cols);
  fill(4, -kInfinity, cols);
  fill(5, 0x1p-120f, 1);
  fill(6, 0x1p-118f, 1);
  fill(7, -127.0f, 1);
  for (int64_t i = 0; i < cols; ++i)
    x[static_cast<size_t>(7 * cols + i)] += i % 4 == 0 ? 0.0f : 0.5f * static_cast<float>(i);
  return x;
}

void add_block(const KernelSet& set, const Panels& weight, const Block& block, int64_t output, int64_t first,
               int64_t count, float* acc) {
  int sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += block.integers[i] * weight.codes[static_cast<size_t>(output * weight.cols + first + i)];
  }
  const float scale = weight.scales[static_cast<size_t>(output * q8_blocks(weight.cols) + first / kQ8Block)];
  multiply_add(set, static_cast<float>(sum) * block.scale, scale, acc);
}

void check_blocks(const KernelSet& set, const Panels& weight, int64_t begin, int64_t blocks) {
  const int64_t cols = weight.cols, first = begin * kQ8Block, row_bytes = set.integers.row_bytes;
  const int64_t inputs = std::min(blocks * kQ8Block, cols - first);
  const Floats x = rows_of(inputs);
  Dots dots;
  dots.begin = begin;
  dots.blocks = blocks;
  dots.inputs = cols;
  dots.w = weight.panel(0);
  dots.w_panel = weight.panel_bytes;
  dots.a_block = kRows * row_bytes + 64;
  Bytes a(static_cast<size_t>(blocks * dots.a_block));
  dots.a = a.data();
  Accumulators acc(kRows, kPanels, 3);
  dots.acc_row = acc.stride;
  for (int64_t r = 0; r < kRows; ++r) {
    set.integers.convert(x.data() + r * inputs, inputs, a.data() + r * row_bytes, dots.a_block);
    for (int64_t i = 0; i < inputs; i += kQ8Block) {
      const int64_t count = std::min(kQ8Block, inputs - i);
      const Block block = quantize_block(x.data() + r * inputs + i, count);
      for (int64_t o = 0; o < 16 * kPanels; ++o) add_block(set, weight, block, o, first + i, count, &acc(r, o));
    }
  }
  for (dots.rows = 1; dots.rows <= kRows; ++dots.rows) {
    for (dots.panels = 1; dots.panels <= kPanels; ++dots.panels) {
      const auto multiply = [&](float* out) {
        dots.acc = out;
        set.integers.multiply(dots);
      };
      acc.expect_part(dots.rows, dots.panels, multiply, "integers of ", cols, " from block ", begin, " count ", blocks);
    }
  }
}

}  // namespace

void check_integers(const KernelSet& set) {
  for (const int64_t cols : {1, 32, 70, 200}) {
    const Panels weight = make_panels(Storage::q8, kPanels, cols, 1);
    const int64_t blocks = q8_blocks(cols);
    check_blocks(set, weight, 0, blocks);
    if (blocks > 1) check_blocks(set, weight, 1, blocks - 1);
  }
}

}  // namespace at_moe::cpu
