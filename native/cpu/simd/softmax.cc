// The vector steps of attention over one row of scores. Lanes are keys by position modulo the vector, so a row's sums
// never depend on the block of rows it is computed with.
#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

// `value` at the lanes [at, at + kLanes) that lie in [first, last), `other` elsewhere.
HWY_INLINE Vec visible(int64_t at, int64_t first, int64_t last, Vec value, Vec other) {
  if (at >= first && at + kLanes <= last) return value;
  const I32 d;
  const auto index = hn::Iota(d, static_cast<int32_t>(at));
  const auto inside = hn::And(hn::Gt(index, hn::Set(d, static_cast<int32_t>(first) - 1)),
                              hn::Lt(index, hn::Set(d, static_cast<int32_t>(last))));
  return hn::IfThenElse(hn::RebindMask(F32(), inside), value, other);
}

}  // namespace

ScoreRow softmax(float* scores, int64_t keys, int64_t first, int64_t last) {
  const F32 d;
  const Vec lowest = hn::Set(d, hwy::LowestValue<float>());
  Vec top = lowest;
  for (int64_t i = first / kLanes * kLanes; i < last; i += kLanes) {
    top = hn::Max(top, visible(i, first, last, hn::Load(d, scores + i), lowest));
  }
  const Vec maximum = hn::MaxOfLanes(d, top);
  Vec sum = hn::Zero(d);
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec p = visible(i, first, last, exp(hn::Sub(hn::Load(d, scores + i), maximum)), hn::Zero(d));
    sum = hn::Add(sum, p);
    hn::Store(p, d, scores + i);
  }
  return {hn::GetLane(maximum), hn::GetLane(hn::SumOfLanes(d, sum))};
}

void softmax_backward(float* p, float* ds, int64_t keys, int64_t first, int64_t last, float lse, float delta) {
  const F32 d;
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec weight = visible(i, first, last, exp(hn::Sub(hn::Load(d, p + i), hn::Set(d, lse))), hn::Zero(d));
    const Vec slope = hn::Mul(weight, hn::Sub(hn::Load(d, ds + i), hn::Set(d, delta)));
    hn::Store(weight, d, p + i);
    hn::Store(visible(i, first, last, slope, hn::Zero(d)), d, ds + i);
  }
}

void blend(float* out, const float* in, int64_t n, float keep, float take) {
  const F32 d;
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec kept = hn::Mul(hn::LoadU(d, out + i), hn::Set(d, keep));
    hn::StoreU(hn::MulAdd(hn::LoadU(d, in + i), hn::Set(d, take), kept), d, out + i);
  }
}

float dot(const float* a, const float* b, int64_t n) {
  const F32 d;
  Vec sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
