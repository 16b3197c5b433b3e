// The forward of RMS norm as a phase (cuda/phase.h), and what its backward shares: y = x r ⊙ gamma over groups of `dim`
// columns, r = 1 / sqrt(mean(x²) + eps). A team of threads has one group: a warp a short one (heads), a block a long one
// (rows). Each thread keeps to its own pieces of the group, so outputs may be inputs.
#pragma once

#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"
#include "cuda/team.h"

namespace at_moe::cuda {

inline constexpr int64_t kWarpNormDim = 512;  // most columns of a group that one warp takes

struct Norm {
  const float* gamma;
  int64_t rows, groups, dim;
  float eps;
  bool aligned;  // gamma, for pieces of all types

  int teams() const { return dim <= kWarpNormDim ? kPhaseThreads / 32 : 1; }  // of a block
  int64_t items() const { return (rows * groups + teams() - 1) / teams(); }
};

template <typename T>
struct NormRows : Rows<T> {
  bool aligned;  // for whole pieces, groups as well

  __device__ T* group(int64_t index, const Norm& norm) const {
    return this->row(index / norm.groups) + index % norm.groups * norm.dim;
  }
};

// Calls act(first column) for the pieces of n columns that are this thread's.
template <int kTeam, int n, typename Act>
__device__ inline void each_piece(int64_t dim, Act act) {
  for (int64_t first = int64_t{threadIdx.x % kTeam} * n; first < dim; first += int64_t{kTeam} * n) act(first);
}

template <int kTeam, typename T>
__device__ inline float inverse_rms(const T* x, const Norm& norm, bool aligned) {
  constexpr int n = kPieceElements<T>;
  float squares = 0;
  each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
    float values[n];
    load_piece(values, x, first, norm.dim, aligned);
#pragma unroll
    for (int i = 0; i < n; ++i) squares = fmaf(values[i], values[i], squares);
  });
  return rsqrtf(team_sum<kTeam>(squares) / static_cast<float>(norm.dim) + norm.eps);
}

template <typename X, typename Y>
struct Normalize {
  NormRows<const X> x;
  NormRows<Y> y;
  Norm norm;

  int64_t items() const { return norm.items(); }
  __device__ void run(int64_t item) const {
    if (norm.dim <= kWarpNormDim) run_team<32>(item * (kPhaseThreads / 32) + threadIdx.x / 32);
    else run_team<kPhaseThreads>(item);
  }

 private:
  template <int kTeam>
  __device__ void run_team(int64_t group) const {
    constexpr int n = kPieceElements<X>;
    if (group >= norm.rows * norm.groups) return;
    const X* from = x.group(group, norm);
    Y* to = y.group(group, norm);
    const float r = inverse_rms<kTeam>(from, norm, x.aligned);
    each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
      float values[n], gamma[n];
      load_piece(values, from, first, norm.dim, x.aligned);
      load_piece(gamma, norm.gamma, first, norm.dim, norm.aligned);
#pragma unroll
      for (int i = 0; i < n; ++i) values[i] *= r * gamma[i];
      store_piece(values, to, first, norm.dim, y.aligned);
    });
  }
};

}  // namespace at_moe::cuda
