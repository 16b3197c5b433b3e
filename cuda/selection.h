// Which rows of a call select which experts, found on the device from the gates of their routing records: a row has no
// part in an expert whose gate is 0. Two forms of it, for products of many experts of which rows select few.
#pragma once

#include <cstdint>

#include "backend/ops/linear.h"

namespace at_moe::cuda {

// A segment with adapters and rows, and whether its products are gathered.
struct MixtureSegment : AdapterSegment {
  bool gathered = false;
};

// The rows of [begin, end) whose gate `gate` is not zero, ascending.
struct RowList {
  int begin = 0, end = 0;
  int32_t gate = 0;
  int32_t* rows = nullptr;  // [end - begin], the first *count of them; device
  int32_t* count = nullptr;
};

inline constexpr int kOpenBlock = 16;  // a step of a tensor core

inline int64_t open_blocks(int64_t extent) { return (extent + kOpenBlock - 1) / kOpenBlock; }

// Blocks of 16 rows, counted from row 0 of the call, by 16 of the `cols` columns of a part of a stack: `open` [rows / 16,
// cols / 16], both rounded up, is 0 where no row of [begin, end) has a gate.
struct OpenBlocks {
  int begin = 0, end = 0, cols = 0;
  const int32_t* gate_column = nullptr;  // [cols]
  uint8_t* open = nullptr;               // device
  // Written as zeros where the gate is; each may be empty. The last two are of the activation type.
  Matrix raw, gated, operand, rest;
};

}  // namespace at_moe::cuda
