// Two-stage grouped router of one layer, losses and gradient (contract: backend/ops/router.h).
//   dw_e = λρ dgate_e; dβ_e = α_g dw_e; dα_g = Σ_e β_e dw_e; rescale: dp = keep (dq - Σ q dq) / Z;
//   softmax: ds = p (dp - Σ p dp) / τ; the losses of the mixture add to dp, or to ds where that is simpler
// Four kernels: the means of α⁰ and β⁰ in blocks of kRowBlock rows; the balance losses of the means and their gradient,
// one block, one thread per stage; the rows of a block of kRowBlock, a warp taking every kWarps'th; the sums over rows.
// Rows compute in float. Sums over rows are double: of a warp's rows, of the warps of a block, of the blocks, in order.
#include "cuda/backend.h"
#include "cuda/router_stage.h"

namespace at_moe::cuda {

namespace {

constexpr int kRowBlock = 32;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
enum Slots { kMeanSums, kBalanceGradient, kRowSums, kLosses };
// What is summed over rows: the losses, these two, and dscore_e of the static form.
enum RowSums { kDlambda = kRouterLosses, kDrho, kFixedSums };

struct Kernel {
  int groups, experts;
  const int32_t* group_start;
  bool conditional, renormalize;
  float group_temperature, expert_temperature;
  const float *score, *balance, *log_scale;
  float balance_constant, scale_constant;
  const float *logits, *routing, *drouting;
  int64_t logit_stride, routing_stride, drouting_stride, rows;
  const float *row_weight, *group_target, *expert_target;
  RouterCoefficients coefficients;
  float* dlogits;
  int64_t dlogit_stride;
  float *dscore, *dbalance, *dlog_scale;
  double* mean_sums;        // [blocks, G+E]
  float* balance_gradient;  // [G+E] of a row of weight 1, with respect to [α⁰ | β⁰]
  double* row_sums;         // [blocks, sums()]
  double* losses;           // [kRouterLosses]

  __device__ int all() const { return groups + experts; }
  __device__ int sums() const { return kFixedSums + (conditional ? 0 : experts); }
  __device__ float lambda() const { return balance ? 1 / (1 + expf(-*balance)) : balance_constant; }
  __device__ float rho() const { return log_scale ? expf(*log_scale) : scale_constant; }
};

__global__ void __launch_bounds__(kThreads) sum_means(Kernel args) {
  const int64_t begin = int64_t{blockIdx.x} * kRowBlock;
  const int64_t end = begin + kRowBlock < args.rows ? begin + kRowBlock : args.rows;
  for (int i = threadIdx.x; i < args.all(); i += kThreads) {
    double sum = 0;
    for (int64_t n = begin; n < end; ++n) {
      sum += static_cast<double>(args.row_weight[n]) * args.routing[n * args.routing_stride + i];
    }
    args.mean_sums[int64_t{blockIdx.x} * args.all() + i] = sum;
  }
}

// CV² of the mean softmax of one stage; gradient[i] = scale * d CV² / d mean_i.
__device__ double squared_variation(const double* mean, int n, double scale, float* gradient) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) {
    sum += mean[i];
    squares += mean[i] * mean[i];
  }
  const double m = sum / n, second = squares / n;
  for (int i = 0; i < n; ++i) gradient[i] = static_cast<float>(scale * 2 * (mean[i] - second / m) / (m * m * n));
  return second / (m * m) - 1;
}

__global__ void __launch_bounds__(kThreads) balance_means(Kernel args, int blocks) {
  double* mean = shared_memory<double>();
  double* variation = mean + args.all();  // of the group stage, then of each group
  for (int i = threadIdx.x; i < args.all(); i += kThreads) {
    double sum = 0;
    for (int b = 0; b < blocks; ++b) sum += args.mean_sums[int64_t{b} * args.all() + i];
    mean[i] = sum;
  }
  __syncthreads();
  for (int stage = threadIdx.x; stage <= args.groups; stage += kThreads) {
    const int begin = stage == 0 ? 0 : args.groups + args.group_start[stage - 1];
    const int end = stage == 0 ? args.groups : args.groups + args.group_start[stage];
    const double scale = stage == 0 ? args.coefficients.group_balance
                                    : static_cast<double>(args.coefficients.expert_balance) / args.groups;
    variation[stage] = squared_variation(mean + begin, end - begin, scale, args.balance_gradient + begin);
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  double experts = 0;
  for (int g = 0; g < args.groups; ++g) experts += variation[1 + g] / args.groups;
  args.losses[kGroupBalance] = variation[0];
  args.losses[kExpertBalance] = experts;
}

// p = softmax(score / τ) of one stage, and the logarithm of Σ e^score.
struct Softmax {
  float largest, log_total, log_raw, temperature;

  __device__ Softmax(const float* score, int n, float tau) : temperature(tau) {
    largest = stage_max(n, [&](int i) { return score[i]; });
    log_total = logf(stage_sum(n, [&](int i) { return expf((score[i] - largest) / temperature); }));
    log_raw = logf(stage_sum(n, [&](int i) { return expf(score[i] - largest); }));
  }
  __device__ float log_p(float score) const { return (score - largest) / temperature - log_total; }
  __device__ float raw_p(float score) const { return expf((score - largest) - log_raw); }
  __device__ float lse() const { return largest + log_raw; }
};

// A row's part of one stage: entropy and z-loss count with `share`, the supervision by `target` (null: none) with
// `target_share`.
struct StageLoss {
  const float* balance;  // gradient, with row_share
  float row_share, share;
  const float* target;
  float target_share;
};

// Gradient of one stage's scores: q(i) and dq(i) of its final weights, more(i) that is added to the gradient of p, and
// out(i, ds) to take the result. dot = Σ q dq.
template <typename Q, typename Dq, typename More, typename Out>
__device__ void stage_gradient(const Softmax& softmax, const float* score, int n, const StageLoss& loss,
                               const RouterCoefficients& coefficient, bool renormalize, float dot, Q q, Dq dq,
                               More more, Out out, double* losses) {
  const float* target = loss.target_share != 0 ? loss.target : nullptr;
  const float kept = stage_sum(n, [&](int i) { return q(i) > 0 ? expf(softmax.log_p(score[i])) : 0; });
  const float labelled = target ? stage_sum(n, [&](int i) { return target[i]; }) : 0;
  const float lse = softmax.lse();
  const auto dp = [&](int i) {
    const float through = q(i) > 0 ? (renormalize ? (dq(i) - dot) / kept : dq(i)) : 0;
    return loss.row_share * loss.balance[i] + through + more(i) -
           coefficient.entropy * loss.share * (softmax.log_p(score[i]) + 1);
  };
  const float mean_dp = stage_sum(n, [&](int i) { return expf(softmax.log_p(score[i])) * dp(i); });
  const float negative_entropy = stage_sum(n, [&](int i) {
    const float log_p = softmax.log_p(score[i]);
    return expf(log_p) * log_p;
  });
  const float agreement = target ? stage_sum(n, [&](int i) { return target[i] * softmax.log_p(score[i]); }) : 0;
  losses[kZLoss] += static_cast<double>(loss.share) * lse * lse;
  losses[kEntropy] -= static_cast<double>(loss.share) * negative_entropy;
  losses[kSupervision] -= static_cast<double>(loss.target_share) * agreement;
  for (int i = threadIdx.x % 32; i < n; i += 32) {
    const float p = expf(softmax.log_p(score[i]));
    float ds = p * (dp(i) - mean_dp) / softmax.temperature;
    ds += coefficient.z_loss * loss.share * 2 * lse * softmax.raw_p(score[i]);
    if (target) {
      ds += coefficient.supervision * loss.target_share * (labelled * p - target[i]) / softmax.temperature;
    }
    out(i, ds);
  }
}

// A warp's shared memory.
struct WarpMemory {
  double* dscore;  // [E] of the static form
  float* dalpha;   // [G]
  float* dalpha0;  // [G] through the static scores
};

__device__ void row_gradient(const Kernel& args, int64_t r, const WarpMemory& memory, double* sums) {
  const int groups = args.groups, experts = args.experts, lane = threadIdx.x % 32;
  const float* logits = args.logits + r * args.logit_stride;
  const float* alpha = args.routing + r * args.routing_stride + args.all();
  const float* weight = alpha + groups;
  const float* dgate = args.drouting + r * args.drouting_stride + 2 * args.all();
  const float* group_target = args.group_target ? args.group_target + r * groups : nullptr;
  float* dlogits = args.dlogits + r * args.dlogit_stride;
  const float share = args.row_weight[r], lambda = args.lambda(), rho = args.rho();

  const float gated = stage_sum(experts, [&](int e) { return weight[e] * dgate[e]; });
  sums[kDlambda] += static_cast<double>(rho) * gated - dgate[experts];
  sums[kDrho] += static_cast<double>(lambda) * gated;

  const Softmax group_softmax(logits, groups, args.group_temperature);
  for (int g = 0; g < groups; ++g) {
    const int begin = args.group_start[g], n = args.group_start[g + 1] - begin;
    const float* score = logits + groups + begin;
    const float of_group = alpha[g];
    const auto beta = [&](int e) { return of_group > 0 ? weight[begin + e] / of_group : 0; };
    const float dalpha = stage_sum(n, [&](int e) { return beta(e) * lambda * rho * dgate[begin + e]; });
    const bool labelled = group_target && args.expert_target;
    const StageLoss loss{args.balance_gradient + groups + begin, share, share / groups,
                         labelled ? args.expert_target + r * experts + begin : nullptr,
                         labelled ? share * group_target[g] : 0};
    const float p_group = expf(group_softmax.log_p(logits[g]));
    float dalpha0 = 0;
    stage_gradient(
        Softmax(score, n, args.expert_temperature), score, n, loss, args.coefficients, args.renormalize,
        of_group * dalpha, beta, [&](int e) { return of_group * lambda * rho * dgate[begin + e]; },
        [](int) { return 0.0f; },
        [&](int e, float ds) {
          if (args.conditional) {
            dlogits[groups + begin + e] = ds;
          } else {
            memory.dscore[begin + e] += static_cast<double>(p_group) * ds;
            dalpha0 += args.score[begin + e] * ds;
          }
        },
        sums);
    dalpha0 = warp_sum(dalpha0);
    if (lane == 0) {
      memory.dalpha[g] = dalpha;
      memory.dalpha0[g] = dalpha0;
    }
  }
  __syncwarp();
  const float dot = stage_sum(groups, [&](int g) { return alpha[g] * memory.dalpha[g]; });
  const StageLoss loss{args.balance_gradient, share, share, group_target, group_target ? share : 0};
  stage_gradient(
      group_softmax, logits, groups, loss, args.coefficients, args.renormalize, dot, [&](int g) { return alpha[g]; },
      [&](int g) { return memory.dalpha[g]; }, [&](int g) { return memory.dalpha0[g]; },
      [&](int g, float ds) { dlogits[g] = ds; }, sums);
  __syncwarp();  // all have read what the next row overwrites
}

__global__ void __launch_bounds__(kThreads, 2) row_gradients(Kernel args) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, statics = args.conditional ? 0 : args.experts;
  double* dscores = shared_memory<double>();
  float* floats = reinterpret_cast<float*>(dscores + kWarps * statics) + 2 * warp * args.groups;
  const WarpMemory memory{dscores + warp * statics, floats, floats + args.groups};
  __shared__ double of_warp[kWarps][kFixedSums];
  for (int e = lane; e < statics; e += 32) memory.dscore[e] = 0;
  __syncwarp();

  const int64_t begin = int64_t{blockIdx.x} * kRowBlock;
  const int64_t end = begin + kRowBlock < args.rows ? begin + kRowBlock : args.rows;
  double sums[kFixedSums] = {};
  for (int64_t r = begin + warp; r < end; r += kWarps) row_gradient(args, r, memory, sums);
  if (lane == 0) {
    for (int i = 0; i < kFixedSums; ++i) of_warp[warp][i] = sums[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < args.sums(); i += kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      sum += i < kFixedSums ? of_warp[w][i] : dscores[w * statics + i - kFixedSums];
    }
    args.row_sums[int64_t{blockIdx.x} * args.sums() + i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) finish_sums(Kernel args, int blocks) {
  for (int i = threadIdx.x; i < args.sums(); i += kThreads) {
    double sum = 0;
    for (int b = 0; b < blocks; ++b) sum += args.row_sums[int64_t{b} * args.sums() + i];
    if (i == kZLoss || i == kEntropy || i == kSupervision) args.losses[i] = sum;
    const double lambda = args.lambda();
    if (i == kDlambda && args.dbalance) *args.dbalance += static_cast<float>(sum * lambda * (1 - lambda));
    if (i == kDrho && args.dlog_scale) *args.dlog_scale += static_cast<float>(sum * args.rho());
    if (i >= kFixedSums && args.dscore) args.dscore[i - kFixedSums] += static_cast<float>(sum);
  }
}

}  // namespace

void CudaBackend::backward(const RouterBackward& args) {
  const RouterShape& shape = *args.shape;
  const RouterLayer& layer = *args.layer;
  const int64_t rows = args.logits.rows, all = shape.groups + shape.experts;
  if (rows == 0) return;
  const int blocks = static_cast<int>((rows + kRowBlock - 1) / kRowBlock);
  const int64_t statics = args.options.conditional ? 0 : shape.experts;
  Kernel kernel{};
  kernel.groups = shape.groups;
  kernel.experts = shape.experts;
  kernel.group_start = stage(std::span<const int32_t>(shape.group_start));
  kernel.conditional = args.options.conditional;
  kernel.renormalize = args.options.renormalize;
  kernel.group_temperature = args.options.group_temperature;
  kernel.expert_temperature = args.options.expert_temperature;
  kernel.score = layer.score;
  kernel.balance = layer.balance;
  kernel.log_scale = layer.log_scale;
  kernel.balance_constant = layer.balance_constant;
  kernel.scale_constant = layer.scale_constant;
  kernel.logits = args.logits.row(0);
  kernel.routing = args.routing.row(0);
  kernel.drouting = args.drouting.row(0);
  kernel.logit_stride = args.logits.stride;
  kernel.routing_stride = args.routing.stride;
  kernel.drouting_stride = args.drouting.stride;
  kernel.rows = rows;
  kernel.row_weight = args.row_weight;
  kernel.group_target = args.group_target;
  kernel.expert_target = args.expert_target;
  kernel.coefficients = args.coefficients;
  kernel.dlogits = args.dlogits.row(0);
  kernel.dlogit_stride = args.dlogits.stride;
  kernel.dscore = args.dscore;
  kernel.dbalance = args.dbalance;
  kernel.dlog_scale = args.dlog_scale;
  kernel.mean_sums = scratch<double>(kMeanSums, blocks * all);
  kernel.balance_gradient = scratch(kBalanceGradient, all);
  kernel.row_sums = scratch<double>(kRowSums, blocks * (kFixedSums + statics));
  kernel.losses = scratch<double>(kLosses, kRouterLosses);

  const dim3 grid(static_cast<unsigned>(blocks)), one(1), block(kThreads);
  const auto mean_bytes = static_cast<size_t>(all + shape.groups + 1) * sizeof(double);
  const size_t warp_bytes = static_cast<size_t>(statics) * sizeof(double) + 2 * shape.groups * sizeof(float);
  launch(stream(), {grid, block}, sum_means, kernel);
  launch(stream(), {one, block, mean_bytes}, balance_means, kernel, blocks);
  launch(stream(), {grid, block, kWarps * warp_bytes}, row_gradients, kernel);
  launch(stream(), {one, block}, finish_sums, kernel, blocks);
  if (!args.losses) return;
  double losses[kRouterLosses];
  download(losses, kernel.losses, sizeof(losses));
  for (int i = 0; i < kRouterLosses; ++i) args.losses[i] += losses[i];
}

}  // namespace at_moe::cuda
