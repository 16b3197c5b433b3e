// Products of f32: a chain of multiply-adds over ascending inputs, bit for bit.
#include <algorithm>

#include "test/kernels/accumulators.h"
#include "test/kernels/panels.h"

namespace at_moe::cpu {

bool fuses([[maybe_unused]] const KernelSet& set) {
#if defined(__x86_64__)
  return std::string_view(set.name) != "base";
#else
  return true;
#endif
}

void check_table(const KernelSet& set) {
  expect(set.kernels.multiply_rate > 0, "multiply_rate is ", set.kernels.multiply_rate);
  expect(set.kernels.tile_panels > 0, "tile_panels is ", set.kernels.tile_panels);
  expect(set.kernels.line_rows > 0, "line_rows is ", set.kernels.line_rows);
  for (int64_t rows = 1; rows <= set.kernels.line_rows; ++rows) {
    expect(set.kernels.line_panels(rows) > 0, "line_panels(", rows, ") is ", set.kernels.line_panels(rows));
  }
  const DotKernels* all[] = {&set.integers, set.pairs};
  for (const DotKernels* dots : all) {
    if (!dots) continue;
    expect(dots->row_bytes > 0 && dots->row_bytes <= 4 * kDotBlock, "row_bytes is ", dots->row_bytes);
  }
}

void check_multiply(const KernelSet& set) {
  constexpr int64_t kRows = 33, kPanels = 9, kLargest = 21;
  for (const int64_t k : {int64_t{1}, int64_t{6}, kLargest}) {
    for (const bool by_columns : {false, true}) {
      Random random(1);
      Floats a = random.uniform(kRows * kLargest);
      const Floats b = random.uniform(kPanels * (kLargest * 17 + 3));
      Tile tile;
      tile.k = k;
      tile.a = a.data();
      tile.a_row = by_columns ? 1 : kLargest;
      tile.a_k = by_columns ? kRows : 1;
      tile.b = b.data();
      tile.b_panel = kLargest * 17 + 3;
      tile.b_k = 17;
      a[static_cast<size_t>(2 * tile.a_row)] = kNan;
      a[static_cast<size_t>(3 * tile.a_row)] = kInfinity;
      Accumulators acc(kRows, kPanels, 2);
      tile.acc_row = acc.stride;
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < 16 * kPanels; ++c) {
          for (int64_t i = 0; i < k; ++i) {
            const float own = tile.a[r * tile.a_row + i * tile.a_k];
            multiply_add(set, own, tile.b[c / 16 * tile.b_panel + i * tile.b_k + c % 16], &acc(r, c));
          }
        }
      }
      for (tile.rows = 0; tile.rows <= kRows; ++tile.rows) {
        for (tile.panels = 1; tile.panels <= kPanels; ++tile.panels) {
          const auto multiply = [&](float* out) {
            tile.acc = out;
            set.kernels.multiply(tile);
          };
          acc.expect_part(tile.rows, tile.panels, multiply, "multiply of ", k);
        }
      }
    }
  }
}

namespace {

struct Inputs {
  int64_t begin, count;
};

void check_lines_of(const KernelSet& set, const Panels& weight, Storage storage, const Inputs& inputs) {
  const int64_t most_rows = set.kernels.line_rows,
                panels = static_cast<int64_t>(weight.bytes.size()) / weight.panel_bytes;
  Lines lines;
  lines.begin = inputs.begin;
  lines.k = inputs.count;
  lines.w = weight.panel(0);
  lines.w_panel = weight.panel_bytes;
  lines.a_row = inputs.count + 3;
  Floats a = Random(4).uniform(most_rows * lines.a_row);
  a[static_cast<size_t>((most_rows - 1) * lines.a_row)] = kNan;
  lines.a = a.data();
  Accumulators acc(most_rows, panels, 5);
  lines.acc_row = acc.stride;
  for (int64_t r = 0; r < most_rows; ++r) {
    for (int64_t o = 0; o < 16 * panels; ++o) {
      for (int64_t i = 0; i < inputs.count; ++i) {
        multiply_add(set, a[static_cast<size_t>(r * lines.a_row + i)], weight.value(o, inputs.begin + i), &acc(r, o));
      }
    }
  }
  for (lines.rows = 1; lines.rows <= most_rows; ++lines.rows) {
    for (lines.panels = 1; lines.panels <= panels; ++lines.panels) {
      const auto multiply = [&](float* out) {
        lines.acc = out;
        set.kernels.lines[static_cast<int>(storage)](lines);
      };
      acc.expect_part(lines.rows, lines.panels, multiply, "lines ", name_of(storage), " from ", inputs.begin, " count ",
                      inputs.count);
    }
  }
}

}  // namespace

void check_lines(const KernelSet& set) {
  constexpr int64_t kCols = 101, kPanels = 9;
  for (const Storage storage : kStorages) {
    const Panels weight = make_panels(storage, kPanels, kCols, 3);
    for (const Inputs& inputs : {Inputs{0, kCols}, {0, 1}, {0, 31}, {32, 64}, {64, 37}, {96, 5}}) {
      check_lines_of(set, weight, storage, inputs);
    }
  }
}

}  // namespace at_moe::cpu
