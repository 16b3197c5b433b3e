// Passes of one block over one row of logits. Thread t has the elements 4 (t + kRowThreads i) .. + 3, however the row
// is aligned, and sums of threads are added in double in a fixed order: the bits depend on the row alone.
#pragma once

#include <cfloat>
#include <cstdint>

#include "cuda/platform.h"

namespace at_moe::cuda {

inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / 32;

// f(first, count) for each run of at most four neighbours that this thread has.
template <typename F>
__device__ void visit_fours(int64_t n, F f) {
  for (int64_t i = 4 * int64_t{threadIdx.x}; i < n; i += 4 * kRowThreads) {
    f(i, static_cast<int>(n - i < 4 ? n - i : 4));
  }
}

__device__ inline bool is_aligned(const float* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

__device__ inline void load_four(const float* from, int count, float (&x)[4]) {
  if (count == 4 && is_aligned(from)) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    x[0] = all.x, x[1] = all.y, x[2] = all.z, x[3] = all.w;
  } else {
    for (int k = 0; k < 4; ++k) x[k] = k < count ? from[k] : 0;
  }
}

__device__ inline void store_four(float* to, int count, const float (&x)[4]) {
  if (count == 4 && is_aligned(to)) {
    *reinterpret_cast<float4*>(to) = {x[0], x[1], x[2], x[3]};
  } else {
    for (int k = 0; k < 4; ++k) {
      if (k < count) to[k] = x[k];
    }
  }
}

// f(index, value) for each element of the row that this thread has.
template <typename F>
__device__ void visit_row(const float* row, int64_t n, F f) {
  visit_fours(n, [&](int64_t i, int count) {
    float x[4];
    load_four(row + i, count, x);
    for (int k = 0; k < 4; ++k) {
      if (k < count) f(i + k, x[k]);
    }
  });
}

// combine() over the values of all threads, known to all of them. combine is commutative.
template <typename T, typename Combine>
__device__ T block_reduce(T value, Combine combine) {
  __shared__ T warps[kRowWarps];
  for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();  // the last reduction's results have been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T all = warps[0];
  for (int w = 1; w < kRowWarps; ++w) all = combine(all, warps[w]);
  return all;
}

template <typename T>
__device__ T block_sum(T value) {
  return block_reduce(value, [](T a, T b) { return a + b; });
}
__device__ inline float block_max(float value) {
  return block_reduce(value, [](float a, float b) { return b > a ? b : a; });
}

// The maximum and the logarithm stay apart: their sum would round a small loss away where logits are large.
struct LogSumExp {
  float largest = 0, log_sum = 0;
  __device__ float log_p(float l) const { return (l - largest) - log_sum; }
};

// One read of the row. A NaN or +inf in it makes log_sum NaN.
__device__ inline LogSumExp log_sum_exp(const float* row, int64_t n) {
  float largest = -FLT_MAX, sum = 0;
  visit_row(row, n, [&](int64_t, float x) {
    if (x > largest) {
      sum *= expf(largest - x);
      largest = x;
    }
    sum += expf(x - largest);
  });
  const float of_all = block_max(largest);
  const double total = block_sum(static_cast<double>(sum) * expf(largest - of_all));
  return {of_all, static_cast<float>(log(total))};
}

}  // namespace at_moe::cuda
