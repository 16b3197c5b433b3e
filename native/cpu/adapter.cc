#include "cpu/adapter.h"

#include <algorithm>

namespace at_moe {

GateRanges::GateRanges(const Matrix& routing, const AdapterSegment& segment) {
  const AdapterStack& stack = *segment.stack;
  const int64_t columns = stack.a->rows();
  for (int64_t first = 0; first < columns;) {
    const int32_t gate = stack.gate_column[first];
    int64_t last = first + 1;
    while (last < columns && stack.gate_column[last] == gate) ++last;
    int64_t row = segment.begin;
    while (row < segment.end && routing.row(row)[gate] == 0) ++row;
    if (row < segment.end) {
      if (!ranges_.empty() && ranges_.back().second == first) {
        ranges_.back().second = last;
      } else {
        ranges_.emplace_back(first, last);
      }
    }
    first = last;
  }
}

std::vector<std::pair<int64_t, int64_t>> GateRanges::in(int64_t begin, int64_t end, int64_t align) const {
  std::vector<std::pair<int64_t, int64_t>> inside;
  for (const auto& [first, last] : ranges_) {
    if (last <= begin || first >= end) continue;
    const int64_t from = (std::max(first, begin) - begin) / align * align;
    const int64_t to = std::min((std::min(last, end) - begin + align - 1) / align * align, end - begin);
    if (!inside.empty() && inside.back().second >= from) {
      inside.back().second = to;
    } else {
      inside.emplace_back(from, to);
    }
  }
  return inside;
}

}  // namespace at_moe
