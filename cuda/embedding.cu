// Token embedding (contract: backend/ops/elementwise.h).
//   forward   y_n = table[ids_n]                    one block per row
//   backward  dtable[ids_n] += dy_n, n ascending    one thread per column walks the rows, so that equal ids add in order
#include "cuda/backend.h"
#include "cuda/number.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128;

template <typename Table, typename T>
__global__ void gather_rows(const Table* table, const int32_t* ids, T* y, int64_t stride, int64_t cols) {
  const Table* from = table + ids[blockIdx.x] * cols;
  T* to = y + blockIdx.x * stride;
  for (int64_t j = threadIdx.x; j < cols; j += kThreads) to[j] = narrow<T>(widen(from[j]));
}

template <typename T, typename Table>
__global__ void scatter_rows(const int32_t* ids, const T* dy, int64_t stride, int64_t rows, int64_t cols, Table* dtable,
                             int64_t table_stride) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= cols) return;
  for (int64_t n = 0; n < rows; ++n) {
    Table& sum = dtable[ids[n] * table_stride + j];
    sum = narrow<Table>(widen(sum) + widen(dy[n * stride + j]));
  }
}

}  // namespace

void CudaBackend::forward(const EmbeddingForward& args) {
  const LaunchShape shape{dim3(static_cast<unsigned>(args.y.rows)), dim3(kThreads)};
  dispatch(args.dtype, [&](auto table) {
    dispatch(args.y.dtype, [&](auto y) {
      using Table = decltype(table);
      using T = decltype(y);
      launch(stream(), shape, gather_rows<Table, T>, static_cast<const Table*>(args.table), args.ids, args.y.row<T>(0),
             args.y.stride, args.y.cols);
    });
  });
}

void CudaBackend::backward(const EmbeddingBackward& args) {
  const LaunchShape shape{dim3(static_cast<unsigned>((args.dy.cols + kThreads - 1) / kThreads)), dim3(kThreads)};
  dispatch(args.dy.dtype, [&](auto dy) {
    dispatch(args.dtable.dtype, [&](auto table) {
      using T = decltype(dy);
      using Table = decltype(table);
      launch(stream(), shape, scatter_rows<T, Table>, args.ids, args.dy.row<T>(0), args.dy.stride, args.dy.rows,
             args.dy.cols, args.dtable.row<Table>(0), args.dtable.stride);
    });
  });
}

}  // namespace at_moe::cuda
