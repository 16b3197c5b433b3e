// Shared by the kernels of one instruction set: f32 vectors of at most 16 lanes, and e^x.
#pragma once

#include <hwy/highway.h>

#include "cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kLanes = HWY_MAX_BYTES / 4 < 16 ? HWY_MAX_BYTES / 4 : 16;
inline constexpr int kVectors = 16 / kLanes;  // of a line of 16 outputs
inline constexpr int64_t kPrefetchBytes = 1024;

using F32 = hn::FixedTag<float, kLanes>;
using U32 = hn::FixedTag<uint32_t, kLanes>;
using I32 = hn::FixedTag<int32_t, kLanes>;
using Vec = hn::Vec<F32>;

// e^x for x <= 88 within 2 ulp; exact zero below -87 and for -inf.
HWY_INLINE Vec exp(Vec x) {
  const F32 d;
  const I32 di;
  const Vec low = hn::Set(d, -87.0f);
  const Vec clamped = hn::Max(x, low);
  const Vec n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  Vec r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  Vec p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenElseZero(hn::Ge(x, low), hn::Mul(p, hn::BitCast(d, power)));
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
