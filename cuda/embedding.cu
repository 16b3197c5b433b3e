// Token embedding (contract: backend/ops/elementwise.h).
//   forward   y_n = table[ids_n]                    one block per row
//   backward  dtable[ids_n] += dy_n, n ascending    one thread per column walks the rows, so that equal ids add in order
#include "cuda/backend.h"
#include "cuda/number.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128;

template <typename Table>
__global__ void gather_rows(const Table* table, const int32_t* ids, float* y, int64_t stride, int64_t cols) {
  const Table* from = table + ids[blockIdx.x] * cols;
  float* to = y + blockIdx.x * stride;
  for (int64_t j = threadIdx.x; j < cols; j += kThreads) to[j] = widen(from[j]);
}

__global__ void scatter_rows(const int32_t* ids, const float* dy, int64_t stride, int64_t rows, int64_t cols,
                             float* dtable, int64_t table_stride) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= cols) return;
  for (int64_t n = 0; n < rows; ++n) dtable[ids[n] * table_stride + j] += dy[n * stride + j];
}

}  // namespace

void CudaBackend::forward(const EmbeddingForward& args) {
  const LaunchShape shape{dim3(static_cast<unsigned>(args.y.rows)), dim3(kThreads)};
  dispatch(args.dtype, [&](auto element) {
    using Table = decltype(element);
    launch(stream(), shape, gather_rows<Table>, static_cast<const Table*>(args.table), args.ids, args.y.row(0),
           args.y.stride, args.y.cols);
  });
}

void CudaBackend::backward(const EmbeddingBackward& args) {
  const LaunchShape shape{dim3(static_cast<unsigned>((args.dy.cols + kThreads - 1) / kThreads)), dim3(kThreads)};
  launch(stream(), shape, scatter_rows, args.ids, args.dy.row(0), args.dy.stride, args.dy.rows, args.dy.cols,
         args.dtable.row(0), args.dtable.stride);
}

}  // namespace at_moe::cuda
