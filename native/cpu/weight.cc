#include "cpu/weight.h"

#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"

namespace at_moe {

namespace {

// Rows [row, row + count) that cover a panel only in part: packed apart, then their lanes are copied.
void pack_lanes(const cpu::Kernels& kernels, const CpuWeight& weight, int64_t row, int64_t count, const char* source,
                int64_t source_row, DType source_type, char* temporary) {
  const DType type = number_type(weight.storage());
  kernels.pack(source, source_row, source_type, count, weight.cols(), type, temporary);
  const size_t lane = type == DType::f16 ? 2 : 4;
  const size_t first = static_cast<size_t>(row % kPanel) * lane, line = lane * kPanel;
  char* panel = weight.panel(row / kPanel);
  for (size_t at = 0; at < static_cast<size_t>(weight.panel_bytes()); at += line) {
    std::memcpy(panel + at + first, temporary + at, static_cast<size_t>(count) * lane);
  }
}

// Rows [row, row + count) of one panel that they cover only in part.
void pack_block_lanes(const CpuWeight& weight, int64_t row, int64_t count, const Q8Rows& source) {
  char* panel = weight.panel(row / kPanel);
  const int64_t lane = row % kPanel, cols = weight.cols();
  for (int64_t begin = 0; begin < cols; begin += kQ8Block) {
    const int64_t end = std::min(begin + kQ8Block, cols);
    for (int64_t r = 0; r < count; ++r) {
      const Q8Rows own = source.from_row(r);
      std::memcpy(panel + Q8Panel::scales(begin) + 2 * (lane + r), own.scales + begin / kQ8Block, 2);
      for (int64_t i = begin; i < end; i += 4) {
        char* stored = panel + Q8Panel::line(i) + 4 * (lane + r);
        const int64_t inputs = std::min<int64_t>(4, end - i);
        for (int64_t at = 0; at < inputs; ++at) stored[at] = static_cast<char>(own.values[i + at] ^ Q8Panel::kFlip);
      }
    }
  }
}

// check, then f(first row, number of rows) for each panel that the rows touch, in parallel: a panel's source stays in the
// cache between the two.
template <typename F>
void for_panels(Pool& pool, const Weight& weight, int64_t row, int64_t count, const Backend::RowCheck& check, F&& f) {
  require(row >= 0 && count >= 0 && row + count <= weight.rows(), "pack: rows ", row, " + ", count, " of ",
          weight.rows());
  if (count == 0) return;
  const int64_t first = row / kPanel, last = (row + count - 1) / kPanel;
  pool.run(last - first + 1, [&](int64_t task, int worker) {
    const int64_t panel = first + task;
    const int64_t begin = std::max(row, panel * kPanel), end = std::min(row + count, (panel + 1) * kPanel);
    if (check) check(begin - row, end - begin);
    f(begin, end - begin, worker);
  });
}

}  // namespace

void CpuBackend::pack(Weight& target, int64_t row, int64_t count, const void* source, DType source_type,
                      const RowCheck& check) {
  const auto& weight = static_cast<const CpuWeight&>(target);
  const int64_t cols = weight.cols(), source_row = cols * static_cast<int64_t>(size_of(source_type));
  for_panels(pool_, weight, row, count, check, [&](int64_t begin, int64_t rows, int worker) {
    const char* from = static_cast<const char*>(source) + (begin - row) * source_row;
    char* panel = weight.panel(begin / kPanel);
    if (is_blocks(weight.storage())) {
      if (rows == kPanel) return kernels_.pack_quantized(from, source_row, source_type, cols, panel);
      const int64_t blocks = q8_blocks(cols);
      auto* scales = worker_scratch<uint16_t>(worker, rows * (blocks + (cols + 1) / 2));
      auto* values = reinterpret_cast<int8_t*>(scales + rows * blocks);
      quantize(source_type, from, rows, cols, values, scales);
      pack_block_lanes(weight, begin, rows, {values, scales, cols});
    } else if (rows == kPanel) {
      kernels_.pack(from, source_row, source_type, kPanel, cols, number_type(weight.storage()), panel);
    } else {
      char* temporary = worker_scratch<char>(worker, weight.panel_bytes());
      pack_lanes(kernels_, weight, begin, rows, from, source_row, source_type, temporary);
    }
  });
}

void CpuBackend::pack(Weight& target, int64_t row, int64_t count, const Q8Rows& source, const RowCheck& check) {
  const auto& weight = static_cast<const CpuWeight&>(target);
  require(is_blocks(weight.storage()) && source.cols == weight.cols(), "pack: blocks into ", name_of(weight.storage()));
  for_panels(pool_, weight, row, count, check, [&](int64_t begin, int64_t rows, int) {
    const Q8Rows from = source.from_row(begin - row);
    if (rows == kPanel) return kernels_.pack_blocks(from, weight.panel(begin / kPanel));
    pack_block_lanes(weight, begin, rows, from);
  });
}

void CpuBackend::pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) {
  pack(weight, row, count, device_source, DType::f32, nullptr);
}

}  // namespace at_moe
