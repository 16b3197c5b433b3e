// What the linear ops derive from the adapter segments of a call.
#pragma once

#include <vector>

#include "backend/ops/linear.h"
#include "cpu/product.h"

namespace at_moe {

// The columns of h whose gate is not zero in all rows of a segment.
class GateRanges {
 public:
  GateRanges(const Matrix& routing, const AdapterSegment& segment);

  // The ranges inside [begin, end), relative to begin, widened to multiples of `align` (within the end) and disjoint. One
  // for all that touch; of a selective stack one for each gate, with its rows.
  std::vector<cpu::Range> in(int64_t begin, int64_t end, int64_t align) const;

 private:
  Matrix routing_;
  bool selective_;
  std::vector<AdapterStack::Block> open_;
};

// The rows that select a column of each panel of columns [begin, end) of a stack.
std::vector<cpu::RowFilter> panel_rows(const Matrix& routing, const AdapterStack& stack, int64_t begin, int64_t end);

}  // namespace at_moe
