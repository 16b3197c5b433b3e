// What the linear ops derive from the adapter segments of a call.
#pragma once

#include <utility>
#include <vector>

#include "backend/ops/linear.h"

namespace at_moe {

// The columns of h whose gate is not zero in all rows of a segment.
class GateRanges {
 public:
  GateRanges(const Matrix& routing, const AdapterSegment& segment);

  // The ranges inside [begin, end), relative to begin, widened to multiples of `align` (within the end) and disjoint.
  std::vector<std::pair<int64_t, int64_t>> in(int64_t begin, int64_t end, int64_t align) const;

 private:
  std::vector<std::pair<int64_t, int64_t>> ranges_;
};

}  // namespace at_moe
