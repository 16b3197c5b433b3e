// Cross-entropy and divergence over rows of logits (contract: backend/ops/loss.h).
//   log p_i = (l_i - max) - log Σ e^(l - max);  loss = -log p[label];  kl = Σ p_base (log p_base - log p)
//   dl = weight (p - onehot) + kl_weight (p - p_base), in place
// The maximum and the logarithm stay apart: their sum would round a small loss away where logits are large.
// Split over rows; sums over the vocabulary as in cpu/lanes.h. Three reads of a row.
#include <cmath>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/lanes.h"

namespace at_moe {

namespace {

constexpr int32_t kNoLabel = -100;

struct LogSumExp {
  float largest = 0, log_sum = 0;
  float log_p(float l) const { return (l - largest) - log_sum; }
};

LogSumExp log_sum_exp(const cpu::Kernels& kernels, const float* l, int64_t n) {
  const float largest = max_lanes(n, l);
  return {largest, static_cast<float>(std::log(kernels.exp_sum(l, n, largest)))};
}

}  // namespace

void CpuBackend::forward(const CrossEntropy& args) {
  const int64_t vocabulary = args.logits.cols;
  for (int64_t n = 0; n < args.logits.rows; ++n) {
    require(args.labels[n] == kNoLabel || (args.labels[n] >= 0 && args.labels[n] < vocabulary), "cross_entropy: label ",
            args.labels[n], " of a vocabulary of ", vocabulary);
  }
  pool_.run_ranges(args.logits.rows, 1, [&](int64_t n, int64_t, int) {
    float* l = args.logits.row(n);
    const int32_t label = args.labels[n];
    const LogSumExp lse = log_sum_exp(kernels_, l, vocabulary);
    args.loss[n] = label == kNoLabel ? 0 : -lse.log_p(l[label]);
    const float weight = args.weight && label != kNoLabel ? args.weight[n] : 0;

    const float* base = args.base_logits ? args.base_logits.row(n) : nullptr;
    const LogSumExp base_lse = base ? log_sum_exp(kernels_, base, vocabulary) : LogSumExp();
    if (base && args.kl) {
      args.kl[n] = static_cast<float>(sum_lanes(vocabulary, [=](int64_t i) {
        const float log_p = base_lse.log_p(base[i]);
        return fast_exp(log_p) * (log_p - lse.log_p(l[i]));
      }));
    }
    if (!args.weight) return;
    const float kl_weight = args.kl_weight ? args.kl_weight[n] : 0;
    if (base && kl_weight != 0) {
      for (int64_t i = 0; i < vocabulary; ++i) {
        l[i] = (weight + kl_weight) * fast_exp(lse.log_p(l[i])) - kl_weight * fast_exp(base_lse.log_p(base[i]));
      }
    } else {
      kernels_.exp_scaled(l, vocabulary, lse.largest, lse.log_sum, weight);
    }
    if (label != kNoLabel) l[label] -= weight;
  });
}

}  // namespace at_moe
