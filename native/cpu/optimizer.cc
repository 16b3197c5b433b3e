// AdamW and the norm for clipping (contract: backend/ops/optimizer.h). Element-wise, split over fixed blocks.
#include <cmath>
#include <vector>

#include "cpu/backend.h"
#include "cpu/lanes.h"

namespace at_moe {

namespace {

constexpr int64_t kBlock = 8192;

int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

}  // namespace

void CpuBackend::update(const AdamW& args) {
  const double step = static_cast<double>(args.step);
  const float rate = static_cast<float>(args.learning_rate / (1 - std::pow(args.beta1, step)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  const float decay = static_cast<float>(1 - args.learning_rate * args.weight_decay);
  const float beta1 = static_cast<float>(args.beta1), fresh1 = static_cast<float>(1 - args.beta1);
  const float beta2 = static_cast<float>(args.beta2), fresh2 = static_cast<float>(1 - args.beta2);
  const float epsilon = static_cast<float>(args.epsilon), scale = args.gradient_scale;
  pool_.run_ranges(blocks_of(args.count), 1, [&](int64_t begin, int64_t end, int) {
    const int64_t last = std::min(args.count, end * kBlock);
    float* __restrict p = args.parameter;
    float* __restrict m = args.moment1;
    float* __restrict v = args.moment2;
    const float* __restrict gradient = args.gradient;
    for (int64_t i = begin * kBlock; i < last; ++i) {
      const float g = gradient[i] * scale;
      m[i] = beta1 * m[i] + fresh1 * g;
      v[i] = beta2 * v[i] + fresh2 * g * g;
      p[i] = decay * p[i] - rate * m[i] / (std::sqrt(v[i]) * root + epsilon);
    }
  });
}

double CpuBackend::squared_norm(const SquaredNorm& args) {
  std::vector<double> partial(static_cast<size_t>(blocks_of(args.count)));
  pool_.run_ranges(blocks_of(args.count), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      double lane[4] = {};
      const int64_t last = std::min(args.count, (b + 1) * kBlock);
      for (int64_t i = b * kBlock; i < last; ++i) lane[i % 4] += static_cast<double>(args.values[i]) * args.values[i];
      partial[b] = (lane[0] + lane[1]) + (lane[2] + lane[3]);
    }
  });
  double total = 0;
  for (const double value : partial) total += value;
  return total;
}

}  // namespace at_moe
