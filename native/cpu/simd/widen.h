// One step of a packed panel as f32 vectors: four inputs for q8, a pair for bf16, one input for f16 and f32.
#pragma once

#include "cpu/q8_panel.h"
#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

// Inputs of a panel of numbers: no scales, and one place after the other.
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
  static HWY_INLINE void load(const char* line, int v, Scale, Vec* inputs) {
    const auto pair = hn::Load(U32(), reinterpret_cast<const uint32_t*>(line) + v * kLanes);
    inputs[0] = hn::BitCast(F32(), hn::ShiftLeft<16>(pair));
    inputs[1] = hn::BitCast(F32(), hn::And(pair, hn::Set(U32(), 0xFFFF0000u)));
  }
};

template <>
struct Step<Storage::f16> : NumberStep<1, 32> {
  static HWY_INLINE void load(const char* line, int v, Scale, Vec* inputs) {
    const hn::Rebind<hwy::float16_t, F32> half;
    inputs[0] = hn::PromoteTo(F32(), hn::Load(half, reinterpret_cast<const hwy::float16_t*>(line) + v * kLanes));
  }
};

template <>
struct Step<Storage::f32> : NumberStep<1, 64> {
  static HWY_INLINE void load(const char* line, int v, Scale, Vec* inputs) {
    inputs[0] = hn::Load(F32(), reinterpret_cast<const float*>(line) + v * kLanes);
  }
};

template <>
struct Step<Storage::q8> {
  static constexpr int kInputs = 4, kBytes = Q8Panel::kLine;
  using Scale = Vec;
  static constexpr int64_t place(int64_t input) { return Q8Panel::line(input); }
  // Of the block of an input.
  static HWY_INLINE Scale scale(const char* panel, int64_t input, int v) {
    const hn::Rebind<hwy::float16_t, F32> half;
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(panel + Q8Panel::scales(input));
    return hn::PromoteTo(F32(), hn::Load(half, scales + v * kLanes));
  }
  static HWY_INLINE void load(const char* line, int v, Scale scale, Vec* inputs) {
    const auto four = hn::Load(I32(), reinterpret_cast<const int32_t*>(line) + v * kLanes);
    inputs[0] = widen(hn::ShiftLeft<24>(four), scale);
    inputs[1] = widen(hn::ShiftLeft<16>(four), scale);
    inputs[2] = widen(hn::ShiftLeft<8>(four), scale);
    inputs[3] = widen(four, scale);
  }

 private:
  // The integers in the upper bytes, times the scales: exact.
  static HWY_INLINE Vec widen(hn::Vec<I32> upper, Vec scale) {
    return hn::Mul(hn::ConvertTo(F32(), hn::ShiftRight<24>(upper)), scale);
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
