// wgmma.mma_async.m64nNk16 with both operands in shared memory, executed when its group is waited for; until then the
// accumulators hold NaN. Operands are found by the bits of their descriptors alone. An element is summed by k, one rounding
// each, so that a mixture with mma.sync would show in its bits.
#pragma once

#include <cstdint>

#include "cuda/emulated/simt.h"

namespace at_moe::cuda {

struct WgmmaIssue {
  uint64_t a, b;  // descriptors
  int n;
  bool transpose_a, transpose_b;
  float (*widen)(uint16_t bits);
};

void issue_wgmma(float* d, const WgmmaIssue& issue);
// Orders accesses of the threads to accumulators before the next wgmma that takes them.
void wgmma_fence();
// Keeps the compiler from moving other uses of the accumulators across it.
template <int n>
void accumulators_fence(float (&)[n]) {}
void wgmma_commit();
void wait_wgmma(int pending);

template <int kPending>
void wgmma_wait() {
  wait_wgmma(kPending);
}

// d [64, n] += a [64, 16] b [16, n]. Element i of a thread: row 16 (warp of the group) + lane / 4 + 8 (i / 2 mod 2), column
// 8 (i / 4) + 2 (lane mod 4) + i mod 2. Operands lie along k, when transposed along m or n.
template <typename T, int n, bool kTransposeA, bool kTransposeB>
void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b) {
  issue_wgmma(d, {a, b, n, kTransposeA, kTransposeB, [](uint16_t bits) { return widen(T{bits}); }});
}

// Registers of the calling warpgroup's threads, from now on.
template <int kCount>
void registers_give() {}
template <int kCount>
void registers_take() {}

}  // namespace at_moe::cuda
