// The embedding as a phase (cuda/phase.h): y_n = table[ids_n]. An item is a row.
#pragma once

#include "core/dtype.h"
#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

struct Gather {
  const void* table;
  DType dtype;  // of the table
  const int32_t* ids;
  Rows<float> y;
  int64_t rows, cols;

  int64_t items() const { return rows; }
  __device__ void run(int64_t row) const {
    switch (dtype) {
      case DType::f32: return copy(static_cast<const float*>(table), row);
      case DType::f16: return copy(static_cast<const f16*>(table), row);
      case DType::bf16: return copy(static_cast<const bf16*>(table), row);
    }
  }

 private:
  template <typename Table>
  __device__ void copy(const Table* from, int64_t row) const {
    from += ids[row] * cols;
    float* to = y.row(row);
    for (int64_t j = threadIdx.x; j < cols; j += kPhaseThreads) to[j] = widen(from[j]);
  }
};

}  // namespace at_moe::cuda
