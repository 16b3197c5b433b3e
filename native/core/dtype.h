#pragma once

#include <cstddef>
#include <cstdint>

namespace at_moe {

enum class DType : uint8_t { f32, f16, bf16 };

constexpr size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

const char* name_of(DType type);

// The bits of the nearest value of a 16-bit type, ties to even.
uint16_t to_half_bits(DType type, float value);

// One value of a stored type, widened. f16 and bf16 are IEEE half and the upper half of a float.
float to_float(DType type, const void* values, int64_t index);

}  // namespace at_moe
