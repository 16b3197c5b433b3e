// What the linear ops of every device derive from the adapter segments of a call.
#pragma once

#include <span>
#include <vector>

#include "backend/ops/linear.h"

namespace at_moe {

// Segments with adapters and rows, neighbours of one stack joined.
std::vector<AdapterSegment> merge_segments(std::span<const AdapterSegment> segments, int64_t rows);

// The blocks of a stack, given the gate of each column.
std::vector<AdapterStack::Block> gate_blocks(std::span<const int32_t> gate_column);

}  // namespace at_moe
