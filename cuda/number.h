// Stored numbers of 16 bits, and their conversions. Rounding is to nearest, ties to even, on every platform.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/status.h"
#include "cuda/platform.h"

namespace at_moe::cuda {

template <typename T>
inline constexpr DType dtype_of = std::is_same_v<T, float>  ? DType::f32
                                  : std::is_same_v<T, bf16> ? DType::bf16
                                                            : DType::f16;

__device__ inline float widen(float value) { return value; }

// float -> T; float -> float is the identity.
template <typename T>
__device__ inline T narrow(float value) {
  if constexpr (std::is_same_v<T, float>) return value;
  else return round_to<T>(value);
}

// What rounding to T takes away.
template <typename T>
__device__ inline float lost_in(float value) {
  return value - widen(narrow<T>(value));
}

// Calls f with a value of the C++ type that `dtype` names.
template <typename F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
  }
  fail(Code::kInternal, "no such number type");
}

// The same for an input and an output: the input is f32 or of the output's type.
template <typename F>
void dispatch(DType input, DType output, F&& f) {
  dispatch(output, [&](auto to) {
    if (input == DType::f32) return f(float{}, to);
    require(input == output, "an input is neither f32 nor of the output's type");
    f(to, to);
  });
}

}  // namespace at_moe::cuda
