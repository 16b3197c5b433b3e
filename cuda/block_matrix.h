// A weight of q8 (core/q8.h) in device memory: int8 [rows, stride], stride being cols padded with zeros to whole blocks, and
// the blocks' scales, f16 [blocks, scale_stride], scale_stride being rows padded to 8. So both can be copied in pieces of
// 16 bytes, and neighbouring outputs' scales lie side by side.
#pragma once

#include <cstdint>

#include "core/q8.h"

namespace at_moe::cuda {

struct BlockMatrix {
  int8_t* values = nullptr;
  uint16_t* scales = nullptr;
  int64_t rows = 0, cols = 0, stride = 0, scale_stride = 0;

  static int64_t padded_cols(int64_t cols) { return q8_blocks(cols) * kQ8Block; }
  static int64_t padded_rows(int64_t rows) { return (rows + 7) / 8 * 8; }
  static size_t bytes(int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * padded_cols(cols)) +
           sizeof(uint16_t) * static_cast<size_t>(padded_rows(rows) * q8_blocks(cols));
  }

  static BlockMatrix in(void* memory, int64_t rows, int64_t cols) {
    auto* values = static_cast<int8_t*>(memory);
    const int64_t stride = padded_cols(cols);
    return {values, reinterpret_cast<uint16_t*>(values + rows * stride), rows, cols, stride, padded_rows(rows)};
  }

  BlockMatrix row_range(int64_t begin, int64_t count) const {
    return {values + begin * stride, scales + begin, count, cols, stride, scale_stride};
  }
};

}  // namespace at_moe::cuda
