// Stored values as f32 vectors: neighbours of a row, and a line of a packed panel, which is four inputs for q8, a pair for
// bf16, one input for f16 and f32; and f32 rounded to bf16.
#pragma once

#include "cpu/q8_panel.h"
#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

using U16 = hn::Rebind<uint16_t, F32>;
using F16 = hn::Rebind<hwy::float16_t, F32>;

HWY_INLINE Vec load_as_float(DType type, const char* source) {
  if (type == DType::f32) return hn::LoadU(F32(), reinterpret_cast<const float*>(source));
  if (type == DType::f16) {
    return hn::PromoteTo(F32(), hn::LoadU(F16(), reinterpret_cast<const hwy::float16_t*>(source)));
  }
  const auto bits = hn::PromoteTo(U32(), hn::LoadU(U16(), reinterpret_cast<const uint16_t*>(source)));
  return hn::BitCast(F32(), hn::ShiftLeft<16>(bits));
}

// bf16 in the upper half of each lane, the lower half cleared.
HWY_INLINE hn::Vec<U32> round_to_bf16(Vec value) {
  const U32 d;
  const auto bits = hn::BitCast(d, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7FFF)));
  const auto is_nan = hn::Gt(hn::And(bits, hn::Set(d, 0x7FFFFFFF)), hn::Set(d, 0x7F800000));
  return hn::And(hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(d, 0x400000)), rounded), hn::Set(d, 0xFFFF0000u));
}

// Lines of numbers: no scales, and one place after the other.
template <int inputs, int bytes>
struct NumberStep {
  static constexpr int kInputs = inputs, kBytes = bytes;
  struct Scale {};
  static constexpr int64_t place(int64_t input) { return input / kInputs * kBytes; }
  static Scale scale(const char*, int64_t, int) { return {}; }
};

template <Storage S>
struct Step;

template <>
struct Step<Storage::bf16> : NumberStep<2, 64> {
  using Line = hn::Vec<U32>;
  static HWY_INLINE Line load(const char* line, int v) {
    return hn::Load(U32(), reinterpret_cast<const uint32_t*>(line) + v * kLanes);
  }
  static HWY_INLINE Vec input(Line line, int i, Scale) {
    return hn::BitCast(F32(), i == 0 ? hn::ShiftLeft<16>(line) : hn::And(line, hn::Set(U32(), 0xFFFF0000u)));
  }
};

template <>
struct Step<Storage::f16> : NumberStep<1, 32> {
  using Line = Vec;
  static HWY_INLINE Line load(const char* line, int v) {
    const hn::Rebind<hwy::float16_t, F32> half;
    return hn::PromoteTo(F32(), hn::Load(half, reinterpret_cast<const hwy::float16_t*>(line) + v * kLanes));
  }
  static HWY_INLINE Vec input(Line line, int, Scale) { return line; }
};

template <>
struct Step<Storage::f32> : NumberStep<1, 64> {
  using Line = Vec;
  static HWY_INLINE Line load(const char* line, int v) {
    return hn::Load(F32(), reinterpret_cast<const float*>(line) + v * kLanes);
  }
  static HWY_INLINE Vec input(Line line, int, Scale) { return line; }
};

// q + 128 in the upper byte of a mantissa's lower half is the float 2^15 + q + 128, so that s q is one fused multiply-add
// with -s (2^15 + 128), and exact.
template <>
struct Step<Storage::q8> {
  static constexpr int kInputs = 4, kBytes = Q8Panel::kLine;
  struct Scale {
    Vec step, shift;
  };
  using Line = hn::Vec<U32>;
  static constexpr int64_t place(int64_t input) { return Q8Panel::line(input); }
  // Of the block of an input.
  static HWY_INLINE Scale scale(const char* panel, int64_t input, int v) {
    const hn::Rebind<hwy::float16_t, F32> half;
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(panel + Q8Panel::scales(input));
    const Vec step = hn::PromoteTo(F32(), hn::Load(half, scales + v * kLanes));
    return {step, hn::Mul(step, hn::Set(F32(), -32896.0f))};
  }
  static HWY_INLINE Line load(const char* line, int v) {
    return hn::Load(U32(), reinterpret_cast<const uint32_t*>(line) + v * kLanes);
  }
  static HWY_INLINE Vec input(Line line, int i, const Scale& scale) {
    constexpr uint8_t kNone = 0x80;
    alignas(16) static constexpr uint8_t kPlaces[4][16] = {
        {kNone, 0, kNone, kNone, kNone, 4, kNone, kNone, kNone, 8, kNone, kNone, kNone, 12, kNone, kNone},
        {kNone, 1, kNone, kNone, kNone, 5, kNone, kNone, kNone, 9, kNone, kNone, kNone, 13, kNone, kNone},
        {kNone, 2, kNone, kNone, kNone, 6, kNone, kNone, kNone, 10, kNone, kNone, kNone, 14, kNone, kNone},
        {kNone, 3, kNone, kNone, kNone, 7, kNone, kNone, kNone, 11, kNone, kNone, kNone, 15, kNone, kNone}};
    const hn::Repartition<uint8_t, U32> bytes;
    const auto one = hn::TableLookupBytesOr0(hn::BitCast(bytes, line), hn::LoadDup128(bytes, kPlaces[i]));
    constexpr uint32_t kNumber = 0x47008000u ^ uint32_t { Q8Panel::kFlip } << 8;
    const auto number = hn::Xor(hn::BitCast(U32(), one), hn::Set(U32(), kNumber));
    const Vec shifted = hn::BitCast(F32(), number);
    if (HWY_NATIVE_FMA) return hn::MulAdd(shifted, scale.step, scale.shift);
    return hn::Mul(hn::Sub(shifted, hn::Set(F32(), 32896.0f)), scale.step);
  }
};

// in [16][16], rows in_row apart -> out[j][i], rows out_row apart. Lanes are moved as they are, whatever they hold.
HWY_INLINE void transpose16(const void* in, int64_t in_row, void* out, int64_t out_row) {
  const hn::FixedTag<uint32_t, 4> d;
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 16; j += 4) {
      const auto* from = static_cast<const uint32_t*>(in) + i * in_row + j;
      const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + in_row);
      const auto r2 = hn::LoadU(d, from + 2 * in_row), r3 = hn::LoadU(d, from + 3 * in_row);
      const auto low01 = hn::InterleaveLower(d, r0, r1), low23 = hn::InterleaveLower(d, r2, r3);
      const auto high01 = hn::InterleaveUpper(d, r0, r1), high23 = hn::InterleaveUpper(d, r2, r3);
      auto* to = static_cast<uint32_t*>(out) + j * out_row + i;
      hn::StoreU(hn::ConcatLowerLower(d, low23, low01), d, to);
      hn::StoreU(hn::ConcatUpperUpper(d, low23, low01), d, to + out_row);
      hn::StoreU(hn::ConcatLowerLower(d, high23, high01), d, to + 2 * out_row);
      hn::StoreU(hn::ConcatUpperUpper(d, high23, high01), d, to + 3 * out_row);
    }
  }
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
