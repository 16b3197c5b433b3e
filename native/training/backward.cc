// Backward of the decoder layers, last to first. d_hidden holds dL/d(output of the layer) and becomes dL/d(its input):
//   runs:      down, swiglu, gate|up, norm      -> d_hidden = dL/dmid;   o -> d_attention
//   sequences: attention                        -> d_q, d_k, d_v
//   runs:      rope, head norms, q|k|v          -> d_z
//   all rows:  router (its gates are used by all four groups of products), d_z += router part
//   runs:      input norm                       -> d_hidden += norm'(d_z)
#include <algorithm>

#include "training/step.h"

namespace at_moe {

namespace {

std::vector<LinearGradients> base_gradients(const Trainer::State& state, int64_t layer, int group) {
  std::vector<LinearGradients> gradients;
  if (!state.offsets) return gradients;
  const BaseOffsets::Layer& offsets = state.offsets->layers[static_cast<size_t>(layer)];
  for (int module = kGroupStart[static_cast<size_t>(group)]; module < kGroupStart[static_cast<size_t>(group) + 1];
       ++module) {
    const size_t at = static_cast<size_t>(module);
    gradients.push_back({state.base_gradient(offsets.weight[at]), state.base_gradient(offsets.bias[at])});
  }
  return gradients;
}

}  // namespace

Pass TrainingStep::backward_layers() {
  for (int64_t layer = config_.num_layers - 1; layer >= 0; --layer) {
    if (state_.options.recompute) co_await forward_layer(layer, true);
    if (routed())
      backend_.zero(tape_.d_records.data, static_cast<size_t>(rows_ * tape_.d_records.cols) * sizeof(float));
    for (int64_t row = 0; row < rows_; row += kTrainingRun) {
      mlp_backward(layer, row, run_rows(row));
      co_await unit_end();
    }
    for (const Sequence& sequence : sequences_) {
      attention_backward(layer, sequence);
      co_await unit_end();
    }
    for (int64_t row = 0; row < rows_; row += kTrainingRun) {
      projections_backward(layer, row, run_rows(row));
      co_await unit_end();
    }
    if (routed()) router_backward(layer);
    if (layer == 0 && !state_.trains_base() && !state_.trains_router()) break;
    for (int64_t row = 0; row < rows_; row += kTrainingRun) {
      input_backward(layer, row, run_rows(row));
      co_await unit_end();
    }
  }
  if (state_.offsets) {
    const Matrix table =
        matrix(state_.base_gradient(state_.offsets->embedding), config_.vocab_size, config_.hidden_size);
    backend_.backward(EmbeddingBackward{tape_.ids.as<int32_t>(), tape_.d_hidden.row_range(0, rows_), table});
  }
}

void TrainingStep::product_backward(int64_t layer, int group, int64_t row, int64_t count, const Matrix& x,
                                    const LayerViews& views, std::span<const LinearModule> modules, const Matrix& dx) {
  const size_t at = static_cast<size_t>(group);
  const MixtureRows own{0, count, state_.mixture.get()};
  const std::vector<AdapterSegment> segments = adapter_segments(std::span(&own, 1), layer, group);
  const std::vector<LinearGradients> gradients = base_gradients(state_, layer, group);
  std::vector<AdapterGradients> adapter_gradients;
  if (state_.trains_adapters() && !segments.empty()) {
    adapter_gradients.push_back(
        state_.mixture->adapter_gradients(static_cast<int>(layer), group, state_.adapters.gradients()));
  }
  LinearBackward args;
  args.x = x;
  args.h = views.h[at];
  args.hg = views.hg[at];
  args.modules = modules;
  args.segments = segments;
  args.dx = dx;
  args.gradients = gradients;
  args.adapter_gradients = adapter_gradients;
  if (!segments.empty()) {
    args.routing = tape_.records(layer, row, count);
    args.dh = tape_.dh.row_range(0, count);
    if (state_.trains_router()) args.drouting = tape_.d_records.row_range(row, count);
  }
  const AdapterDropout drop = dropout(row);
  if (drop.p > 0 && !segments.empty()) {
    args.shrink_x = drop.scratch.row_range(0, count).col_range(0, x.cols);
    args.shrink_dx = tape_.d_dropped.row_range(0, count).col_range(0, x.cols);
    backend_.forward(drop.op(layer, group, x, args.shrink_x, false));
    backend_.backward(args);
    backend_.forward(drop.op(layer, group, args.shrink_dx, dx, true));
    return;
  }
  backend_.backward(args);
}

void TrainingStep::mlp_backward(int64_t layer, int64_t row, int64_t count) {
  const LayerViews views = tape_.layer(layer, row, count);
  const Matrix gradient = tape_.d_hidden.row_range(row, count);
  const Matrix d_act = tape_.d_act.row_range(0, count);
  auto module = [&](int which, const Matrix& y) { return linear_module(model_, layer, which, y); };

  backend_.forward(SwigluForward{views.gate, views.up, views.act});
  product_backward(layer, kGroupDown, row, count, views.act, views, std::array{module(kDown, gradient)}, d_act);
  backend_.backward(SwigluBackward{views.gate, views.up, d_act, views.gate, views.up});
  const float* gamma = model_.layer(layer).post_norm.as<float>();
  backend_.forward(RmsNormForward{views.mid, views.z2, gamma, config_.hidden_size, config_.rms_norm_eps});
  const Matrix d_z2 = tape_.d_z.row_range(row, count);
  product_backward(layer, kGroupGateUp, row, count, views.z2, views,
                   std::array{module(kGate, views.gate), module(kUp, views.up)}, d_z2);
  float* d_gamma =
      state_.offsets ? state_.base_gradient(state_.offsets->layers[static_cast<size_t>(layer)].post_norm) : nullptr;
  backend_.backward(
      RmsNormBackward{views.mid, d_z2, gradient, true, gamma, d_gamma, config_.hidden_size, config_.rms_norm_eps});
  product_backward(layer, kGroupO, row, count, views.attention, views, std::array{module(kO, gradient)},
                   tape_.d_attention.row_range(row, count));
}

void TrainingStep::attention_backward(int64_t layer, const Sequence& sequence) {
  const LayerViews all = tape_.layer(layer, 0, rows_ < kTrainingRun ? rows_ : kTrainingRun);
  auto whole = [&](const Matrix& part) { return matrix(part.data, rows_, part.cols, part.dtype); };
  AttentionBackward args;
  args.q = whole(all.q);
  args.k = whole(all.k);
  args.v = whole(all.v);
  args.out = whole(all.attention);
  args.lse = whole(all.lse);
  args.dout = tape_.d_attention.row_range(0, rows_);
  args.dq = tape_.d_q.row_range(0, rows_);
  args.dk = tape_.d_k.row_range(0, rows_);
  args.dv = tape_.d_v.row_range(0, rows_);
  args.heads = config_.num_heads;
  args.kv_heads = config_.num_kv_heads;
  args.head_dim = config_.head_dim;
  args.window = config_.windows[static_cast<size_t>(layer)];
  args.begin = sequence.begin;
  args.end = sequence.end;
  backend_.backward(args);
}

void TrainingStep::projections_backward(int64_t layer, int64_t row, int64_t count) {
  const LayerViews views = tape_.layer(layer, row, count);
  const Matrix d_q = tape_.d_q.row_range(row, count), d_k = tape_.d_k.row_range(row, count),
               d_v = tape_.d_v.row_range(row, count);
  auto module = [&](int which, const Matrix& y) { return linear_module(model_, layer, which, y); };
  backend_.backward(
      RopeBackward{d_q, d_k, model_.inverse_frequencies(), config_.head_dim, tape_.position.as<int32_t>() + row});
  if (config_.qk_norm) {
    const Model::Layer& weights = model_.layer(layer);
    const BaseOffsets::Layer* offsets = state_.offsets ? &state_.offsets->layers[static_cast<size_t>(layer)] : nullptr;
    auto head_norm = [&](const Matrix& x, const Matrix& dy, const Buffer& gamma, int64_t offset) {
      backend_.backward(RmsNormBackward{x, dy, dy, false, gamma.as<float>(), state_.base_gradient(offset),
                                        config_.head_dim, config_.rms_norm_eps});
    };
    head_norm(views.q_raw, d_q, weights.q_norm, offsets ? offsets->q_norm : -1);
    head_norm(views.k_raw, d_k, weights.k_norm, offsets ? offsets->k_norm : -1);
  }
  norm(layer, row, count, views.z);
  product_backward(layer, kGroupQkv, row, count, views.z, views,
                   std::array{module(kQ, d_q), module(kK, d_k), module(kV, d_v)}, tape_.d_z.row_range(row, count));
}

void TrainingStep::router_backward(int64_t layer) {
  const Mixture& mixture = *state_.mixture;
  const bool train = state_.trains_router();
  const double share = share_ / static_cast<double>(config_.num_layers);
  const RouterCoefficients& given = state_.options.coefficients;
  RouterBackward args;
  args.shape = &mixture.shape();
  args.layer = &mixture.router(static_cast<int>(layer));
  args.options = mixture.source().options;
  if (pooled()) {
    std::vector<SumRows::Run> runs;
    for (size_t i = 0; i < sequences_.size(); ++i)
      runs.push_back({sequences_[i].begin, sequences_[i].end, static_cast<int64_t>(i)});
    const Matrix d_pooled = tape_.d_pooled_records;
    backend_.zero(d_pooled.data, static_cast<size_t>(d_pooled.rows * d_pooled.cols) * sizeof(float));
    backend_.forward(SumRows{tape_.d_records.row_range(0, rows_), d_pooled, runs});
  }
  const int64_t router_rows = pooled() ? static_cast<int64_t>(sequences_.size()) : rows_;
  args.logits = (pooled() ? tape_.pooled_scores(layer) : tape_.scores(layer, 0, rows_)).row_range(0, router_rows);
  args.routing = (pooled() ? tape_.pooled_records(layer) : tape_.records(layer, 0, rows_)).row_range(0, router_rows);
  args.drouting = (pooled() ? tape_.d_pooled_records : tape_.d_records).row_range(0, router_rows);
  args.dlogits = (pooled() ? tape_.d_pooled_scores : tape_.d_scores).row_range(0, router_rows);
  args.row_weight = tape_.row_weight.as<float>();
  args.group_target = batch_.group_target.empty() ? nullptr : tape_.group_target.as<float>();
  args.expert_target = batch_.expert_target.empty() ? nullptr : tape_.expert_target.as<float>();
  auto scaled = [&](float coefficient) { return static_cast<float>(coefficient * share * loss_scale_); };
  args.coefficients = {scaled(given.group_balance), scaled(given.expert_balance), scaled(given.z_loss),
                       scaled(given.entropy), scaled(given.supervision)};
  std::array<double, kRouterLosses> losses{};
  args.losses = losses.data();
  if (train) {
    const Mixture::RouterGradients gradients =
        mixture.router_gradients(static_cast<int>(layer), state_.routers.gradients());
    args.dscore = gradients.score;
    args.dbalance = gradients.balance;
    args.dlog_scale = gradients.log_scale;
  }
  backend_.backward(args);
  const std::array<float, kRouterLosses> coefficients = {given.group_balance, given.expert_balance, given.z_loss,
                                                         given.entropy, given.supervision};
  for (size_t i = 0; i < losses.size(); ++i) {
    result_.router_losses[i] += losses[i] * share;
    result_.auxiliary += coefficients[i] * losses[i] * share;
  }
  if (!pooled()) return;
  std::vector<SpreadRows::Run> spread;
  backend_.zero(tape_.d_scores.data, static_cast<size_t>(rows_ * tape_.d_scores.cols) * sizeof(float));
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int64_t tokens = sequences_[i].prompt_end - sequences_[i].begin;
    spread.push_back({sequences_[i].begin, sequences_[i].prompt_end, args.dlogits.row(static_cast<int64_t>(i)),
                      args.dlogits.cols, 1.0f / static_cast<float>(tokens)});
  }
  backend_.forward(SpreadRows{tape_.d_scores.row_range(0, rows_), spread, false});
}

void TrainingStep::input_backward(int64_t layer, int64_t row, int64_t count) {
  const Matrix z = tape_.z.row_range(0, count), d_z = tape_.d_z.row_range(row, count),
               d_hidden = tape_.d_hidden.row_range(row, count);
  if (routed()) {
    norm(layer, row, count, z);
    const Mixture::RouterGradients own =
        state_.mixture->router_gradients(static_cast<int>(layer), state_.routers.gradients());
    backend_.backward(RouterLogitsBackward{&state_.mixture->router(static_cast<int>(layer)), z,
                                           tape_.d_scores.row_range(row, count), d_z, own.weight, own.bias});
  }
  const float* gamma = model_.layer(layer).input_norm.as<float>();
  float* d_gamma =
      state_.offsets ? state_.base_gradient(state_.offsets->layers[static_cast<size_t>(layer)].input_norm) : nullptr;
  backend_.backward(RmsNormBackward{tape_.input(layer, row, count), d_z, d_hidden, true, gamma, d_gamma,
                                    config_.hidden_size, config_.rms_norm_eps});
}

}  // namespace at_moe
