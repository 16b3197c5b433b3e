#include "core/dtype.h"

#include <cmath>

#include "core/status.h"

namespace at_moe {

namespace {

uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  if (magnitude < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  const uint32_t rounded = std::bit_cast<uint32_t>(magnitude) + 0xFFF + (bits >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

}  // namespace

uint16_t to_half_bits(DType type, float value) {
  if (type == DType::f16) return float_to_half(value);
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

const char* name_of(DType type) { return name_of(storage_of(type)); }

const char* name_of(Storage storage) {
  switch (storage) {
    case Storage::f32: return "f32";
    case Storage::f16: return "f16";
    case Storage::bf16: return "bf16";
    case Storage::q8: return "q8";
  }
  return "?";
}

DType number_type(Storage storage) {
  require(!is_blocks(storage), "a weight in blocks is not made of numbers");
  return static_cast<DType>(storage);
}

float to_float(DType type, const void* values, int64_t index) {
  switch (type) {
    case DType::f32: return to_float<DType::f32>(values, index);
    case DType::f16: return to_float<DType::f16>(values, index);
    case DType::bf16: return to_float<DType::bf16>(values, index);
  }
  return 0;
}

}  // namespace at_moe
