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
  kernels.pack(source, source_row, source_type, count, weight.cols(), weight.dtype(), temporary);
  const size_t lane = weight.dtype() == DType::f16 ? 2 : 4;
  const size_t first = static_cast<size_t>(row % kPanel) * lane, line = lane * kPanel;
  char* panel = weight.panel(row / kPanel);
  for (size_t at = 0; at < static_cast<size_t>(weight.panel_bytes()); at += line) {
    std::memcpy(panel + at + first, temporary + at, static_cast<size_t>(count) * lane);
  }
}

}  // namespace

void CpuBackend::pack(Weight& target, int64_t row, int64_t count, const void* source, DType source_type) {
  const auto& weight = static_cast<const CpuWeight&>(target);
  require(row >= 0 && count >= 0 && row + count <= weight.rows(), "pack: rows ", row, " + ", count, " of ",
          weight.rows());
  if (count == 0) return;
  const int64_t source_row = weight.cols() * static_cast<int64_t>(size_of(source_type));
  const int64_t first = row / kPanel, last = (row + count - 1) / kPanel;
  pool_.run(last - first + 1, [&](int64_t task, int worker) {
    const int64_t panel = first + task;
    const int64_t begin = std::max(row, panel * kPanel), end = std::min(row + count, (panel + 1) * kPanel);
    const char* from = static_cast<const char*>(source) + (begin - row) * source_row;
    if (end - begin == kPanel) {
      kernels_.pack(from, source_row, source_type, kPanel, weight.cols(), weight.dtype(), weight.panel(panel));
    } else {
      char* temporary = worker_scratch<char>(worker, weight.panel_bytes());
      pack_lanes(kernels_, weight, begin, end - begin, from, source_row, source_type, temporary);
    }
  });
}

void CpuBackend::pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) {
  pack(weight, row, count, device_source, DType::f32);
}

}  // namespace at_moe
