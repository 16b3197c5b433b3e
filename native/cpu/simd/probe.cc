// What the processor and its memory can do at best, for the benchmarks.
#include <hwy/cache_control.h>

#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

float read(const char* data, int64_t bytes) {
  const F32 d;
  constexpr int kStreams = 8;
  const int64_t part = bytes / kStreams / 64 * 64;
  Vec sum[kStreams];
  for (Vec& s : sum) s = hn::Zero(d);
  for (int64_t i = 0; i < part; i += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const float* line = reinterpret_cast<const float*>(data + s * part + i);
      hwy::Prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[s] = hn::Add(sum[s], hn::Load(d, line + v * kLanes));
    }
  }
  for (int s = 1; s < kStreams; ++s) sum[0] = hn::Add(sum[0], sum[s]);
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

int64_t spin_fma(int64_t count, float* keep) {
  const F32 d;
  constexpr int kChains = 12;
  Vec chain[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(d, *keep + static_cast<float>(i));
  const Vec factor = hn::Set(d, 0.999f), term = hn::Set(d, 0.001f);
  for (int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], factor, term);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = hn::Add(chain[0], chain[i]);
  *keep = hn::GetLane(hn::SumOfLanes(d, chain[0]));
  return count * kChains * kLanes;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
