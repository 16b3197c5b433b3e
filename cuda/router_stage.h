// One stage of the grouped router, computed by one warp over the n entries of groups, or of the experts of one group.
// Lane l has the entries l, l + 32, …; sums are those of the lanes, in the fixed order of warp_sum.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace at_moe::cuda {

__device__ inline float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

__device__ inline float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Σ term(i) and max term(i) over the n entries.
template <typename Term>
__device__ float stage_sum(int n, Term term) {
  float sum = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) sum += term(i);
  return warp_sum(sum);
}
template <typename Term>
__device__ float stage_max(int n, Term term) {
  float largest = -INFINITY;
  for (int i = threadIdx.x % 32; i < n; i += 32) {
    const float x = term(i);
    largest = x > largest ? x : largest;
  }
  return warp_max(largest);
}

}  // namespace at_moe::cuda
