// SpreadRows as a phase (cuda/phase.h). An item is a row of a run.
#pragma once

#include "backend/ops/segments.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

struct Spread {
  const SpreadRows::Run* runs;
  int64_t count, run_items;  // of a run
  Rows<float> out;
  bool accumulate;

  int64_t items() const { return count * run_items; }
  __device__ void run(int64_t item) const {
    const SpreadRows::Run& run = runs[item / run_items];
    for (int64_t i = run.begin + item % run_items; i < run.end; i += run_items) {
      for (int64_t column = threadIdx.x; column < run.cols; column += kPhaseThreads) {
        float& to = out.row(i)[column];
        to = fmaf(run.factor, run.source[column], accumulate ? to : 0.0f);
      }
    }
  }
};

}  // namespace at_moe::cuda
