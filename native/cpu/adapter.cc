#include "cpu/adapter.h"

#include <algorithm>

namespace at_moe {

GateRanges::GateRanges(const Matrix& routing, const AdapterSegment& segment)
    : routing_(routing), selective_(segment.stack->selective) {
  for (const AdapterStack::Block& block : segment.stack->blocks) {
    int64_t row = segment.begin;
    while (row < segment.end && routing.row(row)[block.gate] == 0) ++row;
    if (row < segment.end) open_.push_back(block);
  }
}

std::vector<cpu::Range> GateRanges::in(int64_t begin, int64_t end, int64_t align) const {
  std::vector<cpu::Range> inside;
  for (const AdapterStack::Block& block : open_) {
    const int64_t last = block.first + block.count;
    if (last <= begin || block.first >= end) continue;
    const int64_t from = (std::max(block.first, begin) - begin) / align * align;
    const int64_t to = std::min((std::min(last, end) - begin + align - 1) / align * align, end - begin);
    const bool joins = !inside.empty() && (selective_ ? inside.back().end > from : inside.back().end >= from);
    if (joins) inside.back().end = to;
    else inside.push_back({from, to, {routing_, {}}});
    if (selective_) inside.back().rows.gates.push_back(block.gate);
  }
  return inside;
}

std::vector<cpu::RowFilter> panel_rows(const Matrix& routing, const AdapterStack& stack, int64_t begin, int64_t end) {
  std::vector<cpu::RowFilter> filters(static_cast<size_t>((end - begin + kPanel - 1) / kPanel), {routing, {}});
  for (const AdapterStack::Block& block : stack.blocks) {
    const int64_t first = std::max(block.first, begin), last = std::min(block.first + block.count, end);
    if (first >= last) continue;
    for (int64_t panel = (first - begin) / kPanel; panel <= (last - 1 - begin) / kPanel; ++panel) {
      filters[static_cast<size_t>(panel)].gates.push_back(block.gate);
    }
  }
  return filters;
}

}  // namespace at_moe
