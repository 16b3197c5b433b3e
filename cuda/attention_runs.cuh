// Runs of keys that blocks of their own have attended to (cuda/attention.cu), and their combination as a phase
// (cuda/phase.h): an item is a row and a head, a thread has every kPhaseThreads-th column.
#pragma once

#include <cstdint>

#include "backend/ops/attention.h"
#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

// Maximum and sum of exp(score - maximum) over some keys. sum 0: none.
struct SoftmaxState {
  float maximum, sum;
};

struct BlendFactors {
  float keep, take;
};

// Adds a run to the state; returns the factors of the values before it and of its own.
__device__ inline BlendFactors blend(SoftmaxState& state, const SoftmaxState& run) {
  if (run.sum == 0) return {1, 0};
  if (state.sum == 0) {
    state = run;
    return {0, 1};
  }
  const float top = fmaxf(state.maximum, run.maximum);
  const BlendFactors factors{expf(state.maximum - top), expf(run.maximum - top)};
  state = {top, fmaf(state.sum, factors.keep, run.sum * factors.take)};
  return factors;
}

__device__ inline float blend(float value, float run, const BlendFactors& factors) {
  return fmaf(value, factors.keep, run * factors.take);
}

__device__ inline int first_visible(int position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

template <typename T>
struct CombineRuns {
  Rows<T> out;
  Rows<float> lse;  // or of null
  const int32_t* position;
  int64_t rows, heads, runs;  // runs that a page table can name
  int dim, window;
  const float* partial;        // [rows, heads, runs, dim]
  const SoftmaxState* states;  // [rows, heads, runs]

  int64_t items() const { return rows * heads; }
  __device__ void run(int64_t item) const {
    const int64_t n = item / heads, head = item % heads, row = item * runs;
    const int last_key = position[n], run_keys = static_cast<int>(kKeyRun);
    const int first_run = first_visible(last_key, window) / run_keys;
    for (int j = threadIdx.x; j < dim; j += kPhaseThreads) {
      SoftmaxState state{0, 0};
      float value = 0;
#pragma unroll 4
      for (int run = first_run; run <= last_key / run_keys; ++run) {
        const BlendFactors factors = blend(state, states[row + run]);
        value = blend(value, partial[(row + run) * dim + j], factors);
      }
      out.row(n)[head * dim + j] = narrow<T>(value * (1.0f / state.sum));
      if (lse.data && j == 0) lse.row(n)[head] = state.maximum + logf(state.sum);
    }
  }
};

}  // namespace at_moe::cuda
