// Weights of 8 bits. A row is cut into blocks of 32 neighbouring inputs, the last one maybe shorter; a block has one f16
// scale s, and for each weight w an integer q in [-127, 127] that stands for s q:
//   s = the smallest f16 that is at least max |w| / 127        q = w / s, rounded to the nearest, ties to even
// s is rounded before it divides, and upwards, so |q| <= 127 and |w - s q| <= s / 2 (w / s itself is rounded to f32), with
//   s <= max |w| / 127 · (1 + 2^-10)      where max |w| >= 127 · 2^-14
//   s <= max |w| / 127 + 2^-24            below, where the scales of f16 are 2^-24 apart
// A block whose largest |w| is at most 2^-25 is zeros and has scale 0. |w| may be at most kQ8Largest. f32 holds s q exactly.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"

namespace at_moe {

inline constexpr int64_t kQ8Block = 32;
inline constexpr float kQ8Largest = 127.0f * 65504.0f;
inline constexpr float kQ8ToInteger = 12582912.0f;  // 1.5 · 2^23: a sum with it has the rounded integer in its low bits

// The largest magnitude that a storage takes; in f16 what is rounded to its largest number, 65504.
constexpr float largest_stored(Storage storage) {
  switch (storage) {
    case Storage::q8: return kQ8Largest;
    case Storage::f16: return 65519.99609375f;
    case Storage::f32:
    case Storage::bf16: break;
  }
  return std::numeric_limits<float>::max();
}

constexpr int64_t q8_blocks(int64_t cols) { return (cols + kQ8Block - 1) / kQ8Block; }

// The scale of a block whose largest |w| is `largest`, as the bits of an f16.
constexpr uint16_t q8_scale(float largest) {
  if (largest <= 0x1p-25f) return 0;
  const float wanted = largest / 127.0f;
  if (wanted < 0x1p-14f) {
    const float steps = wanted * 0x1p24f;
    const auto whole = static_cast<uint16_t>(steps);
    return static_cast<uint16_t>(whole + (static_cast<float>(whole) < steps ? 1 : 0));
  }
  const uint32_t bits = (std::bit_cast<uint32_t>(wanted) + 0x1FFF) >> 13;
  return static_cast<uint16_t>((bits < 0x23BFF ? bits : 0x23BFF) - (112u << 10));
}

// q of a weight under a scale that is not 0.
constexpr int8_t q8_value(float weight, float scale) {
  const float steps = weight / scale;
  const float inside = steps < -127.0f ? -127.0f : steps > 127.0f ? 127.0f : steps;
  return static_cast<int8_t>(std::bit_cast<int32_t>(inside + kQ8ToInteger) - std::bit_cast<int32_t>(kQ8ToInteger));
}

// Row-major, without gaps: values [rows, cols], scales [rows, q8_blocks(cols)] as the bits of f16.
struct Q8Rows {
  const int8_t* values = nullptr;
  const uint16_t* scales = nullptr;
  int64_t cols = 0;

  Q8Rows from_row(int64_t row) const { return {values + row * cols, scales + row * q8_blocks(cols), cols}; }
  // s q of `count` rows.
  std::vector<float> widen(int64_t count) const;
};

// `count` rows of `cols` weights of a stored type.
void quantize(DType type, const void* rows, int64_t count, int64_t cols, int8_t* values, uint16_t* scales);

}  // namespace at_moe
