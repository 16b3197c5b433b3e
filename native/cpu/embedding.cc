// Token embedding (contract: backend/ops/elementwise.h).
//   forward   y_n = table[ids_n], widened to f32      split over rows
//   backward  dtable[ids_n] += dy_n, n ascending      split over columns, so that equal ids never meet in two workers
#include <cstring>

#include "cpu/backend.h"

namespace at_moe {

namespace {

constexpr int64_t kRowGrain = 4;
constexpr int64_t kColumnGrain = 64;

}  // namespace

void CpuBackend::forward(const EmbeddingForward& args) {
  const int64_t d = args.y.cols;
  pool_.run_ranges(args.y.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row_bytes = d * static_cast<int64_t>(size_of(args.dtype));
      const char* source = static_cast<const char*>(args.table) + args.ids[n] * row_bytes;
      if (args.dtype == DType::f32) {
        std::memcpy(args.y.row(n), source, static_cast<size_t>(d) * sizeof(float));
      } else {
        for (int64_t j = 0; j < d; ++j) args.y.row(n)[j] = to_float(args.dtype, source, j);
      }
    }
  });
}

void CpuBackend::backward(const EmbeddingBackward& args) {
  const int64_t d = args.dy.cols;
  pool_.run_ranges(d, kColumnGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < args.dy.rows; ++n) {
      const float* dy = args.dy.row(n);
      float* sum = args.dtable.row(args.ids[n]);
      for (int64_t j = begin; j < end; ++j) sum[j] += dy[j];
    }
  });
}

}  // namespace at_moe
