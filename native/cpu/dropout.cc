// Dropout (contract: backend/ops/elementwise.h). Element i = (first_row + n) * cols + j of the micro-batch is kept when
//   uniform(philox(seed, stream, i / 4)[i mod 4]) >= p
// so the mask depends on the indices alone. Split over rows.
#include "core/rng.h"
#include "core/status.h"
#include "cpu/backend.h"

namespace at_moe {

namespace {

constexpr int64_t kRowGrain = 4;

}  // namespace

void CpuBackend::forward(const Dropout& args) {
  require(args.p >= 0 && args.p < 1, "dropout: p is ", args.p);
  const float factor = 1.0f / (1.0f - args.p);
  pool_.run_ranges(args.x.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* x = args.x.row(n);
      float* y = args.y.row(n);
      uint64_t element = static_cast<uint64_t>((args.first_row + n) * args.x.cols);
      std::array<uint32_t, 4> bits = philox(args.seed, args.stream, element / 4);
      for (int64_t j = 0; j < args.x.cols; ++j, ++element) {
        if (element % 4 == 0) bits = philox(args.seed, args.stream, element / 4);
        const float value = uniform(bits[element % 4]) >= args.p ? x[j] * factor : 0.0f;
        y[j] = args.accumulate ? y[j] + value : value;
      }
    }
  });
}

}  // namespace at_moe
