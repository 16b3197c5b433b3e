// SumRows and SpreadRows (contract: backend/ops/segments.h).
//   sum     a thread per column of a run, which walks the rows, so that they add in order however they are cut
//   spread  blocks over runs and their rows
#include <algorithm>

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kSumThreads = 128;
constexpr int kSpreadColumns = 32, kSpreadRows = 8;
constexpr int64_t kSpreadBlocks = 64;  // most blocks of one run

template <typename Run>
unsigned longest(std::span<const Run> runs, int64_t piece, int64_t most) {
  int64_t rows = 0;
  for (const Run& run : runs) rows = std::max(rows, run.end - run.begin);
  return static_cast<unsigned>(std::min(most, (rows + piece - 1) / piece));
}

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

__global__ void spread_rows(const SpreadRows::Run* runs, float* out, int64_t stride, bool accumulate) {
  const SpreadRows::Run run = runs[blockIdx.x];
  for (int64_t i = run.begin + blockIdx.y * kSpreadRows + threadIdx.y; i < run.end; i += gridDim.y * kSpreadRows) {
    for (int64_t column = threadIdx.x; column < run.cols; column += kSpreadColumns) {
      float& to = out[i * stride + column];
      to = run.factor * run.source[column] + (accumulate ? to : 0.0f);
    }
  }
}

}  // namespace

void CudaBackend::forward(const SumRows& args) {
  const auto columns = static_cast<unsigned>((args.in.cols + kSumThreads - 1) / kSumThreads);
  launch(stream(), {dim3(static_cast<unsigned>(args.runs.size()), columns), dim3(kSumThreads)}, sum_rows,
         stage(args.runs), args.in.row(0), args.in.stride, args.out.row(0), args.out.stride, args.in.cols);
}

void CudaBackend::forward(const SpreadRows& args) {
  const unsigned blocks = longest(args.runs, kSpreadRows, kSpreadBlocks);
  launch(stream(), {dim3(static_cast<unsigned>(args.runs.size()), blocks), dim3(kSpreadColumns, kSpreadRows)},
         spread_rows, stage(args.runs), args.out.row(0), args.out.stride, args.accumulate);
}

}  // namespace at_moe::cuda
