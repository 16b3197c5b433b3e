// The copy engine of sm_90: boxes of tensor maps (cuda/tensor_map.h) to shared memory. The box holds NaN until it lands,
// which is as late as the schedule can make it.
#pragma once

#include <cstdint>

#include "cuda/tensor_map.h"

namespace at_moe::cuda {

// The box whose first value is (row, col) of the matrix to `to`; then its bytes are completed at the barrier.
void copy_box(void* to, const TensorMap* map, int col, int row, uint64_t* barrier);
// Before a block's first use of a map that lies in memory which the host has written.
inline void tensor_map_acquire(const TensorMap*) {}
// Orders what threads have written to memory and what copies will read of it.
inline void async_proxy_fence() {}

}  // namespace at_moe::cuda
