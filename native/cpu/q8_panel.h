// Places in a packed panel of q8 (weight.h), in bytes.
#pragma once

#include "core/q8.h"

namespace at_moe {

struct Q8Panel {
  static constexpr int64_t kLine = 64;     // four inputs of 16 outputs
  static constexpr int64_t kScales = 64;   // two blocks' scales
  static constexpr int64_t kValues = 512;  // a block's lines
  static constexpr int64_t kPair = kScales + 2 * kValues;
  // A value q is stored as the byte q ^ kFlip: on x86, whose byte products take one operand without sign, that is q + 128.
#if defined(__x86_64__)
  static constexpr uint8_t kFlip = 0x80;
#else
  static constexpr uint8_t kFlip = 0;
#endif

  static constexpr int64_t bytes(int64_t cols) {
    const int64_t blocks = q8_blocks(cols);
    return (blocks + 1) / 2 * kScales + blocks * kValues;
  }
  static constexpr int64_t scales(int64_t input) {
    const int64_t block = input / kQ8Block;
    return block / 2 * kPair + block % 2 * (kScales / 2);
  }
  static constexpr int64_t line(int64_t input) {  // of a multiple of 4
    const int64_t pair = 2 * kQ8Block;
    return input / pair * kPair + kScales + input % pair / 4 * kLine;
  }
};

}  // namespace at_moe
