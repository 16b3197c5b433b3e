#include "core/q8.h"

#include <algorithm>

namespace at_moe {

namespace {

// Loops that compilers vectorise: the type is known outside of them.
template <DType T>
void quantize_row(const void* row, int64_t cols, int8_t* values, uint16_t* scales) {
  for (int64_t begin = 0; begin < cols; begin += kQ8Block) {
    const int64_t count = std::min(kQ8Block, cols - begin);
    float weights[kQ8Block];
    uint32_t largest = 0;  // bits of a magnitude, which are ordered as the magnitudes are
    for (int64_t i = 0; i < count; ++i) {
      weights[i] = to_float<T>(row, begin + i);
      largest = std::max(largest, std::bit_cast<uint32_t>(weights[i]) & 0x7FFFFFFF);
    }
    const uint16_t scale = q8_scale(std::bit_cast<float>(largest));
    *scales++ = scale;
    const float step = half_to_float(scale);
    for (int64_t i = 0; i < count; ++i) values[begin + i] = step > 0 ? q8_value(weights[i], step) : int8_t{0};
  }
}

}  // namespace

std::vector<float> Q8Rows::widen(int64_t count) const {
  std::vector<float> wide(static_cast<size_t>(count * cols));
  float* out = wide.data();
  for (int64_t row = 0; row < count; ++row) {
    const Q8Rows own = from_row(row);
    for (int64_t i = 0; i < cols; ++i) {
      *out++ = half_to_float(own.scales[i / kQ8Block]) * static_cast<float>(own.values[i]);
    }
  }
  return wide;
}

void quantize(DType type, const void* rows, int64_t count, int64_t cols, int8_t* values, uint16_t* scales) {
  const int64_t row_bytes = cols * static_cast<int64_t>(size_of(type));
  for (int64_t row = 0; row < count; ++row, values += cols, scales += q8_blocks(cols)) {
    const void* own = static_cast<const char*>(rows) + row * row_bytes;
    switch (type) {
      case DType::f32: quantize_row<DType::f32>(own, cols, values, scales); break;
      case DType::f16: quantize_row<DType::f16>(own, cols, values, scales); break;
      case DType::bf16: quantize_row<DType::bf16>(own, cols, values, scales); break;
    }
  }
}

}  // namespace at_moe
