#include "backend/segments.h"

#include "core/status.h"

namespace at_moe {

std::vector<AdapterSegment> merge_segments(std::span<const AdapterSegment> segments, int64_t rows) {
  std::vector<AdapterSegment> merged;
  for (const AdapterSegment& segment : segments) {
    require(segment.begin >= 0 && segment.end <= rows, "linear: segment [", segment.begin, ", ", segment.end, ") of ",
            rows, " rows");
    if (segment.begin >= segment.end || !segment.stack || !segment.stack->a) continue;
    if (!merged.empty() && merged.back().end == segment.begin && merged.back().stack == segment.stack) {
      merged.back().end = segment.end;
    } else {
      merged.push_back(segment);
    }
  }
  return merged;
}

void check_gradients(const LinearBackward& args) {
  for (size_t m = 0; m < args.gradients.size(); ++m) {
    const LinearModule& module = args.modules[m];
    require(!args.gradients[m].weight || !is_blocks(module.weight->storage()), "linear backward: module ", m,
            " has a weight of ", name_of(module.weight->storage()), ", which is not trained");
  }
}

std::vector<AdapterStack::Block> gate_blocks(std::span<const int32_t> gate_column) {
  std::vector<AdapterStack::Block> blocks;
  for (size_t column = 0; column < gate_column.size(); ++column) {
    if (column == 0 || gate_column[column] != gate_column[column - 1]) {
      blocks.push_back({gate_column[column], static_cast<int64_t>(column), 0});
    }
    ++blocks.back().count;
  }
  return blocks;
}

}  // namespace at_moe
