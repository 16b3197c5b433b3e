#pragma once

#include "cuda/phase.h"

namespace at_moe::cuda {

// What a block knows about the phases of its launch.
class PhaseProgress {
 public:
  __device__ explicit PhaseProgress(const PhaseList& list) : phases_(list.phases), done_(list.counters + 1) {}

  // Returns when the results of the first `count` phases can be read. Tickets of these were drawn before by blocks that
  // run, so that they end whatever the number of blocks.
  __device__ void wait(int count) {
    if (count <= reached_) return;
    for (int p = reached_ + static_cast<int>(threadIdx.x); p < count; p += kPhaseThreads) {
      while (load_acquire(&done_[p]) < static_cast<uint32_t>(phases_[p].items)) spin_pause();
    }
    __syncthreads();
    reached_ = count;
  }
  // The block's item of a phase is done.
  __device__ void announce(int phase) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) add_release(&done_[phase], 1);
  }

 private:
  const PhaseRecord* phases_;
  uint32_t* done_;
  int reached_ = 0;
};

}  // namespace at_moe::cuda
