#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace at_moe {

// Types of single numbers.
enum class DType : uint8_t { f32, f16, bf16 };

constexpr size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

const char* name_of(DType type);

// How a weight is stored: as numbers of a DType, or in blocks that share a scale (core/q8.h), which have no size of their
// own: the bytes of a weight follow from its shape and the layout of its backend.
enum class Storage : uint8_t { f32, f16, bf16, q8 };

constexpr Storage storage_of(DType type) { return static_cast<Storage>(type); }
constexpr bool is_blocks(Storage storage) { return storage == Storage::q8; }
DType number_type(Storage storage);  // fails with kInternal for blocks
const char* name_of(Storage storage);

// The bits of the nearest value of a 16-bit type, ties to even.
uint16_t to_half_bits(DType type, float value);

// IEEE half. Neither branches nor f32 values below the normal ones, which some threads flush to zero.
constexpr float half_to_float(uint16_t half) {
  const uint32_t magnitude = half & 0x7FFFu, sign = (half & 0x8000u) << 16;
  const uint32_t exponent = magnitude < 0x7C00 ? 112u << 23 : 224u << 23;
  const float small = std::bit_cast<float>((magnitude << 13) + (113u << 23)) - 0x1p-14f;
  const uint32_t bits = magnitude < 0x400 ? std::bit_cast<uint32_t>(small) : (magnitude << 13) + exponent;
  return std::bit_cast<float>(bits | sign);
}

// One value of a stored type, widened. f16 and bf16 are IEEE half and the upper half of a float.
template <DType T>
float to_float(const void* values, int64_t index) {
  if constexpr (T == DType::f32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  if constexpr (T == DType::f16) return half_to_float(bits);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
float to_float(DType type, const void* values, int64_t index);

}  // namespace at_moe
