// One step of a packed panel as f32 vectors: a pair of inputs for bf16, one input for f16 and f32.
#pragma once

#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

template <DType T>
struct Step;

template <>
struct Step<DType::bf16> {
  static constexpr int kInputs = 2, kBytes = 64;
  static HWY_INLINE void load(const char* line, int v, Vec* inputs) {
    const auto pair = hn::Load(U32(), reinterpret_cast<const uint32_t*>(line) + v * kLanes);
    inputs[0] = hn::BitCast(F32(), hn::ShiftLeft<16>(pair));
    inputs[1] = hn::BitCast(F32(), hn::And(pair, hn::Set(U32(), 0xFFFF0000u)));
  }
};

template <>
struct Step<DType::f16> {
  static constexpr int kInputs = 1, kBytes = 32;
  static HWY_INLINE void load(const char* line, int v, Vec* inputs) {
    const hn::Rebind<hwy::float16_t, F32> half;
    inputs[0] = hn::PromoteTo(F32(), hn::Load(half, reinterpret_cast<const hwy::float16_t*>(line) + v * kLanes));
  }
};

template <>
struct Step<DType::f32> {
  static constexpr int kInputs = 1, kBytes = 64;
  static HWY_INLINE void load(const char* line, int v, Vec* inputs) {
    inputs[0] = hn::Load(F32(), reinterpret_cast<const float*>(line) + v * kLanes);
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
