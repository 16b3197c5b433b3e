// Sums over a team: a warp, or a whole block of kTeam threads.
#pragma once

#include "cuda/platform.h"

namespace at_moe::cuda {

// The sum in every thread of the team, with the same bits; its order depends on kTeam alone.
template <int kTeam, typename T>
__device__ inline T team_sum(T value) {
  constexpr int kWarp = 32;
#pragma unroll
  for (int other = kWarp / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
  if constexpr (kTeam > kWarp) {
    __shared__ T partial[kTeam / kWarp];
    __syncthreads();  // the sum before this one may still be read
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (int warp = 1; warp < kTeam / kWarp; ++warp) value += partial[warp];
  }
  return value;
}

}  // namespace at_moe::cuda
