// Plain loops in a form that compilers vectorise for any instruction set with the same bits: 16 independent lanes.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace at_moe {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kLaneBlock = 1024;

// Σ term(i) for i < n: f32 lanes inside blocks of kLaneBlock terms, lanes and blocks in order in double.
template <typename Term>
double sum_lanes(int64_t n, Term term) {
  double total = 0;
  for (int64_t block = 0; block < n; block += kLaneBlock) {
    const int64_t end = block + kLaneBlock < n ? block + kLaneBlock : n;
    float lane[kLanes] = {};
    int64_t i = block;
    for (; i + kLanes <= end; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lane[l] += term(i + l);
    }
    for (; i < end; ++i) lane[(i - block) % kLanes] += term(i);
    for (const float value : lane) total += value;
  }
  return total;
}

// The largest of n >= 1 values; NaN is passed over.
inline float max_lanes(int64_t n, const float* values) {
  float lane[kLanes];
  for (float& value : lane) value = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = values[i + l] > lane[l] ? values[i + l] : lane[l];
  }
  for (; i < n; ++i) lane[i % kLanes] = values[i] > lane[i % kLanes] ? values[i] : lane[i % kLanes];
  return *std::max_element(lane, lane + kLanes);
}

// e^x within 2 ulp over [-87, 88]; 0 below, e^88 above, NaN for NaN. Cephes' expf without branches.
inline float fast_exp(float x) {
  const float clamped = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // + 1.5 * 2^23: an integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) - 0x4B400000u + 127u) << 23);
  return x < -87.0f ? 0.0f : p * power;
}

}  // namespace at_moe
