// Cross-entropy and divergence over rows of logits (contract: backend/ops/loss.h).
//   log p_i = (l_i - max) - log Σ e^(l - max);  loss = -log p[label];  kl = Σ p_base (log p_base - log p)
//   dl = weight (p - onehot) + kl_weight (p - p_base), in place
// One block per row (cuda/vocabulary.h): one read for the maximum and the sum together, one read and write for the
// gradient with the divergence. A label outside of the vocabulary gives a loss of NaN: the host cannot see it here.
#include "cuda/backend.h"
#include "cuda/vocabulary.h"

namespace at_moe::cuda {

namespace {

constexpr int32_t kNoLabel = -100;

struct LossKernel {
  float* logits;
  int64_t stride, cols;
  const int32_t* labels;
  const float* weight;
  const float* base_logits;
  int64_t base_stride;
  const float* kl_weight;
  float* loss;
  float* kl;
};

__global__ void __launch_bounds__(kRowThreads) cross_entropy(LossKernel args) {
  const int64_t n = blockIdx.x;
  float* l = args.logits + n * args.stride;
  const float* base = args.base_logits ? args.base_logits + n * args.base_stride : nullptr;
  const int32_t label = args.labels[n];
  const bool labelled = label >= 0 && label < args.cols;
  const float at_label = labelled ? l[label] : 0;

  const LogSumExp lse = log_sum_exp(l, args.cols);
  if (threadIdx.x == 0) {
    args.loss[n] = labelled ? -lse.log_p(at_label) : (label == kNoLabel ? 0.0f : NAN);
  }
  if (!args.weight && !base) return;
  const LogSumExp base_lse = base ? log_sum_exp(base, args.cols) : LogSumExp();
  const float weight = args.weight && labelled ? args.weight[n] : 0;
  const float kl_weight = args.weight && base && args.kl_weight ? args.kl_weight[n] : 0;
  float divergence = 0;
  visit_fours(args.cols, [&](int64_t i, int count) {
    float x[4], b[4] = {};
    load_four(l + i, count, x);
    if (base) load_four(base + i, count, b);
    for (int k = 0; k < 4; ++k) {
      const float log_p = lse.log_p(x[k]);
      float gradient = (weight + kl_weight) * expf(log_p);
      if (base && k < count) {
        const float base_log_p = base_lse.log_p(b[k]), p_base = expf(base_log_p);
        divergence += p_base * (base_log_p - log_p);
        if (kl_weight != 0) gradient -= kl_weight * p_base;
      }
      x[k] = i + k == label ? gradient - weight : gradient;
    }
    if (args.weight) store_four(l + i, count, x);
  });
  if (!base || !args.kl) return;
  const double total = block_sum(static_cast<double>(divergence));
  if (threadIdx.x == 0) args.kl[n] = static_cast<float>(total);
}

}  // namespace

void CudaBackend::forward(const CrossEntropy& args) {
  const LossKernel kernel{args.logits.row(0),      args.logits.stride,      args.logits.cols, args.labels, args.weight,
                          args.base_logits.row(0), args.base_logits.stride, args.kl_weight,   args.loss,   args.kl};
  launch(stream(), {dim3(static_cast<unsigned>(args.logits.rows)), dim3(kRowThreads)}, cross_entropy, kernel);
}

}  // namespace at_moe::cuda
