// Two-stage grouped router of one layer (contract: backend/ops/router.h).
//   forward   α⁰ = softmax((a + bias) / τ_g), β⁰ = softmax((c + bias) / τ_e) per group; denied entries are 0;
//             α, β = rescale(keep(α⁰, β⁰)), then `set` entries; w_e = α_g β_e; gate_e = λ ρ w_e
//   backward  dw_e = λρ dgate_e; dβ_e = α_g dw_e; dα_g = Σ_e β_e dw_e; rescale: dp = keep (dq - Σ q dq) / Z;
//             softmax: ds = p (dp - Σ p dp) / τ; the losses of the mixture add to dp, or to ds where that is simpler
// Split: rows of the record are independent. Sums over rows are taken in blocks of kRowBlock rows, in double, and the
// blocks are added in order, so that no result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/router_stage.h"

namespace at_moe {

namespace {

constexpr int64_t kRowBlock = 64;
constexpr int64_t kRowGrain = 16;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double lambda_of(const RouterLayer& layer) { return layer.balance ? sigmoid(*layer.balance) : layer.balance_constant; }

double rho_of(const RouterLayer& layer) { return layer.log_scale ? std::exp(*layer.log_scale) : layer.scale_constant; }

template <typename T>
const T* offset(const std::vector<T>& values, int32_t begin) {
  return values.empty() ? nullptr : values.data() + begin;
}

// A segment with its controls checked and resolved: a group whose experts are all denied is denied.
struct PreparedSegment {
  const RouterForward::Segment* segment = nullptr;
  std::vector<uint8_t> group_denied;
  Stage group;
  std::vector<Stage> expert;  // [G]
  double lambda = 1, rho = 1;

  explicit PreparedSegment(const RouterForward::Segment& source) : segment(&source) {
    static const RouterControls none;
    const RouterShape& shape = *source.shape;
    const RouterControls& controls = source.controls ? *source.controls : none;
    const RouterOptions& options = source.options;
    if (source.pooled && source.begin >= source.end) fail(Code::kRouting, "a sequence has no instruction token");
    group_denied = denied_groups(shape, controls);
    for (int32_t g = 0; g < shape.groups; ++g) {
      const int32_t begin = shape.group_start[g], n = shape.group_start[g + 1] - begin;
      expert.push_back({n, options.expert_temperature, options.expert_top_k, options.expert_top_p, options.renormalize,
                        offset(controls.expert_bias, begin), offset(controls.expert_denied, begin),
                        offset(controls.expert_set, begin)});
    }
    group = {shape.groups,        options.group_temperature,      options.group_top_k, options.group_top_p,
             options.renormalize, offset(controls.group_bias, 0), group_denied.data(), offset(controls.group_set, 0)};
    lambda = lambda_of(*source.layer);
    rho = rho_of(*source.layer);
  }

  int64_t records() const { return segment->pooled ? 1 : segment->end - segment->begin; }
};

void mean_rows(const Matrix& logits, int64_t begin, int64_t end, int32_t cols) {
  std::vector<double> total(static_cast<size_t>(cols));
  for (int64_t n = begin; n < end; ++n) {
    for (int32_t j = 0; j < cols; ++j) total[j] += logits.row(n)[j];
  }
  const double count = static_cast<double>(end - begin);
  for (int32_t j = 0; j < cols; ++j) logits.row(begin)[j] = static_cast<float>(total[j] / count);
}

void route(const PreparedSegment& prepared, float* logits, const uint8_t* frozen, float* record) {
  const RouterShape& shape = *prepared.segment->shape;
  const int32_t groups = shape.groups, experts = shape.experts;
  float* alpha0 = record + shape.alpha0();
  float* beta0 = record + shape.beta0();
  float* alpha = record + shape.alpha();
  float* weight = record + shape.weight();
  float* gate = record + shape.gate();

  softmax(prepared.group, logits, alpha0);
  finish(prepared.group, alpha0, frozen, alpha);
  for (int32_t g = 0; g < groups; ++g) {
    const int32_t begin = shape.group_start[g], n = prepared.expert[g].n;
    float* score = logits + groups + begin;
    if (!prepared.segment->options.conditional) {
      for (int32_t e = 0; e < n; ++e) score[e] = alpha0[g] * prepared.segment->layer->score[begin + e];
    }
    softmax(prepared.expert[g], score, beta0 + begin);
    finish(prepared.expert[g], beta0 + begin, frozen ? frozen + groups + begin : nullptr, weight + begin);
    for (int32_t e = begin; e < begin + n; ++e) weight[e] *= alpha[g];
  }
  const float factor = static_cast<float>(prepared.lambda * prepared.rho);
  for (int32_t e = 0; e < experts; ++e) gate[e] = factor * weight[e];
  gate[experts] = static_cast<float>(1 - prepared.lambda);
}

// CV² of the mean softmax of one stage; gradient[i] = scale * d CV² / d mean_i.
double squared_variation(const double* mean, int32_t n, double scale, double* gradient) {
  double sum = 0, squares = 0;
  for (int32_t i = 0; i < n; ++i) {
    sum += mean[i];
    squares += mean[i] * mean[i];
  }
  const double m = sum / n, second = squares / n;
  for (int32_t i = 0; i < n; ++i) gradient[i] = scale * 2 * (mean[i] - second / m) / (m * m * n);
  return second / (m * m) - 1;
}

// One stage of one row: n scores, p = softmax(score / τ), and the gradients with respect to p and score.
struct StageGradient {
  int32_t n;
  double temperature;
  double *score, *p, *log_p, *dp, *dscore;
  double lse = 0;  // of the raw scores

  void softmax(const float* source) {
    for (int32_t i = 0; i < n; ++i) score[i] = source[i];
    const double largest = *std::max_element(score, score + n);
    double total = 0, raw = 0;
    for (int32_t i = 0; i < n; ++i) {
      total += std::exp((score[i] - largest) / temperature);
      raw += std::exp(score[i] - largest);
    }
    for (int32_t i = 0; i < n; ++i) {
      log_p[i] = (score[i] - largest) / temperature - std::log(total);
      p[i] = std::exp(log_p[i]);
      dscore[i] = 0;
    }
    lse = largest + std::log(raw);
  }

  // Back through q = rescale(keep(p)), given dq and q; entries with q = 0 were not kept (or do not matter).
  void add_selected(const double* q, const double* dq, bool renormalize) {
    double kept = 0, dot = 0;
    for (int32_t i = 0; i < n; ++i) {
      if (q[i] > 0) kept += p[i];
      dot += q[i] * dq[i];
    }
    for (int32_t i = 0; i < n; ++i) {
      if (q[i] > 0) dp[i] += renormalize ? (dq[i] - dot) / kept : dq[i];
    }
  }

  // Entropy and z-loss count with `share`, the supervision by `target` (null: none) with `target_share`.
  void add_losses(const RouterCoefficients& coefficient, double share, const float* target, double target_share,
                  double* losses) {
    double labelled = 0;
    for (int32_t i = 0; i < n && target; ++i) labelled += target[i];
    losses[kZLoss] += share * lse * lse;
    for (int32_t i = 0; i < n; ++i) {
      losses[kEntropy] -= share * p[i] * log_p[i];
      dp[i] -= coefficient.entropy * share * (log_p[i] + 1);
      dscore[i] += coefficient.z_loss * share * 2 * lse * std::exp(score[i] - lse);
      if (!target || target_share == 0) continue;
      losses[kSupervision] -= target_share * target[i] * log_p[i];
      dscore[i] += coefficient.supervision * target_share * (labelled * p[i] - target[i]) / temperature;
    }
  }

  void finish() {
    double dot = 0;
    for (int32_t i = 0; i < n; ++i) dot += p[i] * dp[i];
    for (int32_t i = 0; i < n; ++i) dscore[i] += p[i] * (dp[i] - dot) / temperature;
  }
};

// The sums over rows of one block: losses, dλ, dρ, dscore_e.
struct BlockSums {
  double losses[kRouterLosses] = {};
  double dlambda = 0, drho = 0;
  std::vector<double> dscore;
};

// Gradient of one layer's rows. `balance` is the gradient of the balance losses with respect to a row of weight 1's
// [α⁰ | β⁰].
class RouterGradient {
 public:
  RouterGradient(const RouterBackward& args, const double* balance)
      : args_(args),
        shape_(*args.shape),
        balance_(balance),
        lambda_(lambda_of(*args.layer)),
        rho_(rho_of(*args.layer)),
        scratch_(static_cast<size_t>(7 * (shape_.groups + shape_.experts))) {}

  void row(int64_t r, BlockSums& sums) {
    const int32_t groups = shape_.groups, all = groups + shape_.experts;
    const float* record = args_.routing.row(r);
    const float* logits = args_.logits.row(r);
    const double share = args_.row_weight[r];
    const float* target = args_.group_target ? args_.group_target + r * groups : nullptr;
    double* q = scratch_.data() + 5 * all;
    double* dq = scratch_.data() + 6 * all;
    add_gate(r, sums);
    for (int32_t i = 0; i < all; ++i) dp()[i] = share * balance_[i];

    StageGradient group = stage(0, groups, args_.options.group_temperature);
    group.softmax(logits);
    for (int32_t g = 0; g < groups; ++g) {
      const int32_t begin = shape_.group_start[g], n = shape_.group_start[g + 1] - begin;
      const float* dgate = args_.drouting.row(r) + shape_.gate() + begin;
      const float* weight = record + shape_.weight() + begin;
      const double alpha = record[shape_.alpha() + g];
      q[g] = alpha;
      dq[g] = 0;
      double* beta = q + groups + begin;
      double* dbeta = dq + groups + begin;
      for (int32_t e = 0; e < n; ++e) {
        beta[e] = alpha > 0 ? weight[e] / alpha : 0;
        dbeta[e] = alpha * lambda_ * rho_ * dgate[e];
        dq[g] += beta[e] * lambda_ * rho_ * dgate[e];
      }
      StageGradient expert = stage(groups + begin, n, args_.options.expert_temperature);
      expert.softmax(logits + groups + begin);
      expert.add_selected(beta, dbeta, args_.options.renormalize);
      const bool labelled = target && args_.expert_target;
      expert.add_losses(args_.coefficients, share / groups,
                        labelled ? args_.expert_target + r * shape_.experts + begin : nullptr,
                        labelled ? share * target[g] : 0, sums.losses);
      expert.finish();
      if (!args_.options.conditional) add_static(group, g, expert, sums);
    }
    group.add_selected(q, dq, args_.options.renormalize);
    group.add_losses(args_.coefficients, share, target, share, sums.losses);
    group.finish();
    float* out = args_.dlogits.row(r);
    for (int32_t i = 0; i < (args_.options.conditional ? all : groups); ++i) out[i] = static_cast<float>(dscore()[i]);
  }

 private:
  double* dp() { return scratch_.data() + 3 * (shape_.groups + shape_.experts); }
  double* dscore() { return scratch_.data() + 4 * (shape_.groups + shape_.experts); }

  StageGradient stage(int32_t first, int32_t n, double temperature) {
    const int32_t all = shape_.groups + shape_.experts;
    double* base = scratch_.data() + first;
    return {n, temperature, base, base + all, base + 2 * all, base + 3 * all, base + 4 * all};
  }

  void add_gate(int64_t r, BlockSums& sums) const {
    const float* weight = args_.routing.row(r) + shape_.weight();
    const float* dgate = args_.drouting.row(r) + shape_.gate();
    double dot = 0;
    for (int32_t e = 0; e < shape_.experts; ++e) dot += static_cast<double>(weight[e]) * dgate[e];
    sums.dlambda += rho_ * dot - dgate[shape_.experts];
    sums.drho += lambda_ * dot;
  }

  // c_e = α⁰_g score_e
  void add_static(StageGradient& group, int32_t g, const StageGradient& expert, BlockSums& sums) const {
    const int32_t begin = shape_.group_start[g];
    for (int32_t e = 0; e < expert.n; ++e) {
      sums.dscore[begin + e] += group.p[g] * expert.dscore[e];
      group.dp[g] += args_.layer->score[begin + e] * expert.dscore[e];
    }
  }

  const RouterBackward& args_;
  const RouterShape& shape_;
  const double* balance_;
  double lambda_, rho_;
  std::vector<double> scratch_;  // score, p, log_p, dp, dscore, q, dq: [G+E] each
};

}  // namespace

void CpuBackend::forward(const RouterForward& args) {
  std::vector<PreparedSegment> prepared;
  prepared.reserve(args.segments.size());  // stages point into their segment
  std::vector<int64_t> first{0};
  for (const RouterForward::Segment& segment : args.segments) {
    prepared.emplace_back(segment);
    first.push_back(first.back() + prepared.back().records());
  }
  pool_.run_ranges(first.back(), kRowGrain, [&](int64_t begin, int64_t end, int) {
    size_t index = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first[index + 1]) ++index;
      const RouterForward::Segment& segment = *prepared[index].segment;
      const int64_t n = item - first[index];
      const int32_t scores = segment.shape->groups + segment.shape->experts;
      if (segment.pooled) {
        const int32_t cols = segment.options.conditional ? scores : segment.shape->groups;
        mean_rows(args.logits, segment.begin, segment.end, cols);
      }
      route(prepared[index], args.logits.row(segment.begin + n),
            segment.frozen_selection ? segment.frozen_selection + n * scores : nullptr,
            args.routing.row(segment.out + n));
    }
  });
}

void CpuBackend::backward(const RouterBackward& args) {
  const RouterShape& shape = *args.shape;
  const int64_t rows = args.logits.rows, blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int32_t groups = shape.groups, all = groups + shape.experts;
  const RouterCoefficients& coefficient = args.coefficients;

  std::vector<double> partial(static_cast<size_t>(blocks * all)), mean(static_cast<size_t>(all)), balance(mean);
  pool_.run_ranges(blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin * kRowBlock; n < std::min(rows, end * kRowBlock); ++n) {
      double* sum = partial.data() + n / kRowBlock * all;
      for (int32_t i = 0; i < all; ++i) sum[i] += static_cast<double>(args.row_weight[n]) * args.routing.row(n)[i];
    }
  });
  for (int64_t b = 0; b < blocks; ++b) {
    for (int32_t i = 0; i < all; ++i) mean[i] += partial[b * all + i];
  }
  double losses[kRouterLosses] = {};
  if (rows > 0) {
    losses[kGroupBalance] = squared_variation(mean.data(), groups, coefficient.group_balance, balance.data());
    for (int32_t g = 0; g < groups; ++g) {
      const int32_t begin = groups + shape.group_start[g], n = shape.group_start[g + 1] - shape.group_start[g];
      const double scale = static_cast<double>(coefficient.expert_balance) / groups;
      losses[kExpertBalance] += squared_variation(mean.data() + begin, n, scale, balance.data() + begin) / groups;
    }
  }

  std::vector<BlockSums> sums(static_cast<size_t>(blocks));
  pool_.run_ranges(blocks, 1, [&](int64_t begin, int64_t end, int) {
    RouterGradient gradient(args, balance.data());
    for (int64_t b = begin; b < end; ++b) {
      sums[b].dscore.resize(static_cast<size_t>(shape.experts));
      for (int64_t n = b * kRowBlock; n < std::min(rows, (b + 1) * kRowBlock); ++n) gradient.row(n, sums[b]);
    }
  });
  BlockSums total;
  total.dscore.resize(static_cast<size_t>(shape.experts));
  for (const BlockSums& block : sums) {
    for (int i = 0; i < kRouterLosses; ++i) losses[i] += block.losses[i];
    total.dlambda += block.dlambda;
    total.drho += block.drho;
    for (int32_t e = 0; e < shape.experts; ++e) total.dscore[e] += block.dscore[e];
  }
  for (int i = 0; i < kRouterLosses && args.losses; ++i) args.losses[i] += losses[i];
  for (int32_t e = 0; e < shape.experts && args.dscore; ++e) args.dscore[e] += static_cast<float>(total.dscore[e]);
  const double lambda = lambda_of(*args.layer);
  if (args.dbalance) *args.dbalance += static_cast<float>(total.dlambda * lambda * (1 - lambda));
  if (args.dlog_scale) *args.dlog_scale += static_cast<float>(total.drho * rho_of(*args.layer));
}

}  // namespace at_moe
