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
  kNormalizeHeads,
  kScore,
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

}  // namespace at_moe::cuda
