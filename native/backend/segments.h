// What the linear ops of every device derive from their arguments.
#pragma once

#include <span>
#include <vector>

#include "backend/ops/linear.h"

namespace at_moe {

// Segments with adapters and rows, neighbours of one stack joined.
std::vector<AdapterSegment> merge_segments(std::span<const AdapterSegment> segments, int64_t rows);

// Fails with kInternal when a weight in blocks is to be trained.
void check_gradients(const LinearBackward& args);

// The blocks of a stack, given the gate of each column.
std::vector<AdapterStack::Block> gate_blocks(std::span<const int32_t> gate_column);

}  // namespace at_moe
