#include "model/layer.h"

namespace at_moe {

namespace {

void product(const Model& model, const LayerRun& run, const LayerViews& views, int group, const Matrix& x,
             std::span<const LinearModule> modules, const Matrix& residual) {
  const size_t at = static_cast<size_t>(group);
  const std::vector<AdapterSegment> segments = adapter_segments(run.mixtures, run.index, group);
  LinearForward args;
  args.x = x;
  args.modules = modules;
  args.segments = segments;
  args.routing = views.records;
  args.h = views.h[at];
  args.hg = views.hg[at];
  args.residual = residual;
  if (run.dropout && run.dropout->p > 0 && !segments.empty()) {
    args.shrink_x = run.dropout->scratch.row_range(0, x.rows).col_range(0, x.cols);
    model.backend().forward(run.dropout->op(run.index, group, x, args.shrink_x, false));
  }
  model.backend().forward(args);
}

}  // namespace

Dropout AdapterDropout::op(int64_t layer, int group, const Matrix& x, const Matrix& y, bool accumulate) const {
  Dropout args;
  args.x = x;
  args.y = y;
  args.accumulate = accumulate;
  args.p = p;
  args.seed = seed;
  args.stream = step << 24 | static_cast<uint64_t>(layer) << 4 | static_cast<uint64_t>(group);
  args.first_row = first_row;
  return args;
}

std::vector<AdapterSegment> adapter_segments(std::span<const MixtureRows> mixtures, int64_t layer, int group) {
  std::vector<AdapterSegment> segments;
  for (const MixtureRows& rows : mixtures) {
    const AdapterStack* stack = rows.mixture ? rows.mixture->stack(static_cast<int>(layer), group) : nullptr;
    if (stack) segments.push_back({rows.begin, rows.end, stack});
  }
  return segments;
}

LinearModule linear_module(const Model& model, int64_t layer, int module, const Matrix& y) {
  const size_t at = static_cast<size_t>(module);
  return {model.layer(layer).weight[at].get(), model.layer(layer).bias[at].as<float>(), y};
}

void layer_forward(const Model& model, const LayerRun& run, const LayerViews& views) {
  Backend& backend = model.backend();
  const ModelConfig& config = model.config();
  const Model::Layer& layer = model.layer(run.index);
  auto module = [&](int which, const Matrix& y) { return linear_module(model, run.index, which, y); };

  product(model, run, views, kGroupQkv, views.z,
          std::array{module(kQ, views.q_raw), module(kK, views.k_raw), module(kV, views.v)}, {});
  if (config.qk_norm) {
    backend.forward(
        RmsNormForward{views.q_raw, views.q_in, layer.q_norm.as<float>(), config.head_dim, config.rms_norm_eps});
    backend.forward(
        RmsNormForward{views.k_raw, views.k_in, layer.k_norm.as<float>(), config.head_dim, config.rms_norm_eps});
  }
  backend.forward(RopeForward{views.q_in, views.k_in, views.q, views.k, views.v, model.inverse_frequencies(),
                              config.head_dim, run.kv, run.kv_layer, run.layout});
  AttentionForward attend;
  attend.q = views.q;
  attend.out = views.attention;
  attend.lse = views.lse;
  attend.kv = run.kv;
  attend.layer = run.kv_layer;
  attend.heads = config.num_heads;
  attend.window = config.windows[static_cast<size_t>(run.index)];
  attend.layout = run.layout;
  backend.forward(attend);
  product(model, run, views, kGroupO, views.attention, std::array{module(kO, views.mid)}, views.in);
  backend.forward(
      RmsNormForward{views.mid, views.z2, layer.post_norm.as<float>(), config.hidden_size, config.rms_norm_eps});
  product(model, run, views, kGroupGateUp, views.z2, std::array{module(kGate, views.gate), module(kUp, views.up)}, {});
  backend.forward(SwigluForward{views.gate, views.up, views.act});
  product(model, run, views, kGroupDown, views.act, std::array{module(kDown, views.out)}, views.mid);
}

}  // namespace at_moe
