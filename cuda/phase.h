// A launch of phases (cuda/phases.cu): the ops of a few rows, one after another in one kernel. A phase is an op cut into
// items of one block of kPhaseThreads threads; each is a struct of arguments with
//   items()           how many there are; on the host
//   run(int64 item)   the work of one, by a whole block, in the block's dynamic shared memory
// which a kernel of the op's own runs as well, one item per block, where the rows are many.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace at_moe::cuda {

inline constexpr int kPhaseThreads = 128;
inline constexpr int64_t kPhaseRows = 64;               // the most rows of an op that joins others
inline constexpr size_t kPhaseSharedBytes = 40 * 1024;  // what every launch of phases has

// The size of a step that a grid is for: steps of a bucket are launched alike.
inline int64_t row_bucket(int64_t rows) {
  for (const int64_t bucket : {1, 2, 4, 8, 16, 24, 32, 48, 64}) {
    if (rows <= bucket) return bucket;
  }
  return rows;
}

enum class PhaseKind : int32_t {
  kUpload,
  kConvert,
  kGather,
  kNormalize,
  kProduct,
  kRoute,
  kSpread,
  kRotate,
  kGated,
  kCombine,
};

struct PhaseRecord {
  PhaseKind kind;
  int32_t first, items;  // tickets
  const void* arguments;
};

struct PhaseList {
  const PhaseRecord* phases;  // by first ticket
  int32_t count, items;
  uint32_t* counters;  // tickets drawn, then the items of each phase that are done; zero at the start
};

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
