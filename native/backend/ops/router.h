// The two-stage grouped router of one layer. G groups, E experts, group g owns the experts [start_g, start_{g+1}).
//
//   a = W_g z + b_g                         [G]   raw group scores          logits = [a | c], see router_logits.h
//   c = W_e z + b_e (conditional)           [E]   raw expert scores;  static: c_e = α⁰_{g(e)} score_e
//   per stage: + bias, deny -> -inf, / τ, softmax (α⁰, β⁰), keep top-k and top-p, rescale, `weight` controls -> α, β
//   w_e = α_{g(e)} β_e;  gate_e = λ ρ w_e;  gate_E = 1 - λ (general adapter)
//   λ = balance, or sigmoid(balance parameter); ρ = scale, or exp(scale parameter)
//
// A routing record is one f32 row:  [α⁰ G | β⁰ E | α G | w E | gate E+1], width 2G+3E+1.
// Token scope: each row has its record. Sequence scope: the logits of the instruction rows are averaged in ascending
// order (the router is linear, so this equals the router of the mean input) into one record for the sequence.
// Source: mixture-spec sections 2-4.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/ops/linear.h"
#include "core/matrix.h"

namespace at_moe {

struct RouterOptions {
  bool conditional = true;  // false: static
  int32_t group_top_k = 0, expert_top_k = 0;
  float group_top_p = 0, expert_top_p = 0;
  float group_temperature = 1, expert_temperature = 1;
  bool renormalize = true;
};

// Per request; host arrays, null or empty = no such control. `set` holds NaN where nothing is set.
struct RouterControls {
  std::vector<float> group_bias, expert_bias;
  std::vector<uint8_t> group_denied, expert_denied;
  std::vector<float> group_set, expert_set;
};

struct RouterShape {
  int32_t groups = 0, experts = 0;
  std::vector<int32_t> group_start;  // [G+1]
  int32_t width() const { return 2 * groups + 3 * experts + 1; }
  int32_t alpha0() const { return 0; }
  int32_t beta0() const { return groups; }
  int32_t alpha() const { return groups + experts; }
  int32_t weight() const { return 2 * groups + experts; }
  int32_t gate() const { return 2 * groups + 2 * experts; }
};

// 1 for the groups that are denied or have no expert left. Fails with kRouting when no group is left, or when weights that
// were set are negative, denied or above 1 in sum.
std::vector<uint8_t> denied_groups(const RouterShape& shape, const RouterControls& controls);

// The router of one layer on the device, f32.
struct RouterLayer {
  const Weight* weight = nullptr;    // [G+E, d] (static: [G, d]), from create_router_weight
  const float* bias = nullptr;       // [G+E] (static: [G])
  const float* score = nullptr;      // [E], static only
  const float* balance = nullptr;    // [1] learned λ before the sigmoid; null: constant below
  const float* log_scale = nullptr;  // [1] learned ln ρ; null: constant below
  float balance_constant = 1, scale_constant = 1;
};

struct RouterForward {
  struct Segment {
    int64_t begin = 0, end = 0;  // rows of logits
    int64_t out = 0;             // token: row of `routing` of the first row; pooled: the one row
    bool pooled = false;         // logits of [begin, end) are averaged, and the mean is stored in logits row `begin`
    const RouterShape* shape = nullptr;
    const RouterLayer* layer = nullptr;
    RouterOptions options;
    const RouterControls* controls = nullptr;
    const uint8_t* frozen_selection = nullptr;  // tests: [rows, G+E] kept entries instead of top-k / top-p; host
  };
  Matrix logits;   // [N, >= G+E] f32; static: columns G.. are written with c
  Matrix routing;  // records, f32
  std::span<const Segment> segments;
};

struct RouterCoefficients {  // mixture-spec section 4
  float group_balance = 0, expert_balance = 0, z_loss = 0, entropy = 0, supervision = 0;
};

// Indices into the losses of RouterBackward.
enum RouterLoss { kGroupBalance, kExpertBalance, kZLoss, kEntropy, kSupervision, kRouterLosses };

// Losses and gradient of one layer over R router rows (tokens, or sequences with their token share).
struct RouterBackward {
  const RouterShape* shape = nullptr;
  const RouterLayer* layer = nullptr;
  RouterOptions options;
  Matrix logits;                         // [R, G+E] of the forward (pooled means for sequence scope)
  Matrix routing;                        // [R, width]
  Matrix drouting;                       // [R, width]: only the gate columns are read
  const float* row_weight = nullptr;     // [R] share of the row in the averages, sums to 1; device
  const float* group_target = nullptr;   // [R, G] t_g or null; rows of zeros have no label; device
  const float* expert_target = nullptr;  // [R, E] t_{e|g} or null; device
  RouterCoefficients coefficients;  // already divided by the number of layers and scaled by the micro-batch's share
  Matrix dlogits;                   // [R, G+E] out (static: [R, G])
  float* dscore = nullptr;          // [E] added to, or null
  float* dbalance = nullptr;        // [1] added to, or null
  float* dlog_scale = nullptr;      // [1] added to, or null
  double* losses = nullptr;         // host [kRouterLosses]: unweighted values of this layer, added to
};

}  // namespace at_moe
