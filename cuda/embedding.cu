// Token embedding (contract: backend/ops/elementwise.h).
//   forward   y_n = table[ids_n]                    one block per row
//   backward  dtable[ids_n] += dy_n, n ascending    one thread per column walks the rows, so that equal ids add in order
#include "cuda/embedding.cuh"

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kPhaseThreads) gather_rows(Gather phase) { phase.run(blockIdx.x); }

__global__ void scatter_rows(const int32_t* ids, const float* dy, int64_t stride, int64_t rows, int64_t cols,
                             float* dtable, int64_t table_stride) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= cols) return;
  for (int64_t n = 0; n < rows; ++n) dtable[ids[n] * table_stride + j] += dy[n * stride + j];
}

}  // namespace

void CudaBackend::forward(const EmbeddingForward& args) {
  const Gather phase{args.table, args.dtype, args.ids, rows_of<float>(args.y), args.y.rows, args.y.cols};
  if (joins(args.y.rows)) return commands_.add(PhaseKind::kGather, phase, args.y);
  launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, gather_rows, phase);
}

void CudaBackend::backward(const EmbeddingBackward& args) {
  const LaunchShape shape{dim3(static_cast<unsigned>((args.dy.cols + kThreads - 1) / kThreads)), dim3(kThreads)};
  launch(stream(), shape, scatter_rows, args.ids, args.dy.row(0), args.dy.stride, args.dy.rows, args.dy.cols,
         args.dtable.row(0), args.dtable.stride);
}

}  // namespace at_moe::cuda
