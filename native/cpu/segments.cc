// SumRows and SpreadRows (backend/ops/segments.h); rows are short, so one thread does it.
#include "cpu/backend.h"

namespace at_moe {

void CpuBackend::forward(const SumRows& args) {
  for (const SumRows::Run& run : args.runs) {
    float* out = args.out.row(run.row);
    for (int64_t i = run.begin; i < run.end; ++i) {
      const float* in = args.in.row(i);
      for (int64_t c = 0; c < args.in.cols; ++c) out[c] += in[c];
    }
  }
}

void CpuBackend::forward(const SpreadRows& args) {
  for (const SpreadRows::Run& run : args.runs) {
    for (int64_t i = run.begin; i < run.end; ++i) {
      float* out = args.out.row(i);
      for (int64_t c = 0; c < run.cols; ++c) out[c] = run.factor * run.source[c] + (args.accumulate ? out[c] : 0.0f);
    }
  }
}

}  // namespace at_moe
