// SumRows and SpreadRows (contract: backend/ops/segments.h).
//   sum     a thread per column of a run, which walks the rows, so that they add in order however they are cut
//   spread  blocks over runs and their rows (cuda/segments.cuh)
#include "cuda/segments.cuh"

#include <algorithm>

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kSumThreads = 128;
constexpr int64_t kSpreadBlocks = 64;  // most blocks of one run

__global__ void sum_rows(const SumRows::Run* runs, const float* in, int64_t in_stride, float* out, int64_t out_stride,
                         int64_t cols) {
  const SumRows::Run run = runs[blockIdx.x];
  const int64_t column = int64_t{blockIdx.y} * kSumThreads + threadIdx.x;
  if (column >= cols) return;
  float sum = out[run.row * out_stride + column];
#pragma unroll 8
  for (int64_t i = run.begin; i < run.end; ++i) sum += in[i * in_stride + column];
  out[run.row * out_stride + column] = sum;
}

__global__ void __launch_bounds__(kPhaseThreads) spread_rows(Spread phase) { phase.run(blockIdx.x); }

}  // namespace

void CudaBackend::forward(const SumRows& args) {
  const auto columns = static_cast<unsigned>((args.in.cols + kSumThreads - 1) / kSumThreads);
  launch(stream(), {dim3(static_cast<unsigned>(args.runs.size()), columns), dim3(kSumThreads)}, sum_rows,
         stage(args.runs), args.in.row(0), args.in.stride, args.out.row(0), args.out.stride, args.in.cols);
}

void CudaBackend::forward(const SpreadRows& args) {
  int64_t rows = 0, longest = 0;
  for (const SpreadRows::Run& run : args.runs) {
    rows += run.end - run.begin;
    longest = std::max(longest, run.end - run.begin);
  }
  Spread phase{nullptr, static_cast<int64_t>(args.runs.size()), std::min(longest, kSpreadBlocks),
               rows_of<float>(args.out), args.accumulate};
  if (joins(rows)) {
    commands_.open();
    phase.runs = commands_.put(args.runs);
    return commands_.add_selecting(PhaseKind::kSpread, phase, args.out);
  }
  phase.runs = stage(args.runs);
  launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, spread_rows, phase);
}

}  // namespace at_moe::cuda
