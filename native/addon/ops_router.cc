#include <algorithm>

#include "addon/ops_call.h"
#include "core/status.h"

namespace at_moe {

namespace {

RouterShape shape_of(const Napi::Object& from) {
  RouterShape shape;
  shape.group_start = OpCall::values<int32_t>(from, "groupStart");
  if (shape.group_start.empty()) throw Napi::TypeError::New(from.Env(), "'groupStart' is missing");
  shape.groups = static_cast<int32_t>(shape.group_start.size()) - 1;
  shape.experts = shape.group_start.back();
  return shape;
}

RouterOptions options_of(const Napi::Object& from) {
  RouterOptions options;
  options.conditional = OpCall::flag(from, "conditional", true);
  options.group_top_k = static_cast<int32_t>(OpCall::number(from, "groupTopK"));
  options.expert_top_k = static_cast<int32_t>(OpCall::number(from, "expertTopK"));
  options.group_top_p = static_cast<float>(OpCall::number(from, "groupTopP"));
  options.expert_top_p = static_cast<float>(OpCall::number(from, "expertTopP"));
  options.group_temperature = static_cast<float>(OpCall::number(from, "groupTemperature", 1));
  options.expert_temperature = static_cast<float>(OpCall::number(from, "expertTemperature", 1));
  options.renormalize = OpCall::flag(from, "renormalize", true);
  return options;
}

RouterControls controls_of(const Napi::Object& from) {
  return {OpCall::values<float>(from, "groupBias"),     OpCall::values<float>(from, "expertBias"),
          OpCall::values<uint8_t>(from, "groupDenied"), OpCall::values<uint8_t>(from, "expertDenied"),
          OpCall::values<float>(from, "groupSet"),      OpCall::values<float>(from, "expertSet")};
}

RouterLayer layer_of(OpCall& call, const Napi::Object& from) {
  RouterLayer layer;
  layer.weight = call.router_weight(from, "weight");
  layer.bias = call.array<float>(from, "bias");
  layer.score = call.array<float>(from, "score");
  layer.balance = call.array<float>(from, "balance");
  layer.log_scale = call.array<float>(from, "logScale");
  layer.balance_constant = static_cast<float>(OpCall::number(from, "balanceConstant", 1));
  layer.scale_constant = static_cast<float>(OpCall::number(from, "scaleConstant", 1));
  return layer;
}

// x, cols, segments [{begin, end, weight, bias}]
void router_logits(OpCall& call) {
  const std::vector<Napi::Object> sources = OpCall::list(call.args(), "segments");
  std::vector<RouterLayer> layers;
  layers.reserve(sources.size());
  for (const Napi::Object& source : sources) layers.push_back(layer_of(call, source));
  std::vector<RouterLogits::Segment> segments;
  for (size_t i = 0; i < sources.size(); ++i) {
    segments.push_back({OpCall::integer(sources[i], "begin"), OpCall::integer(sources[i], "end"), &layers[i]});
  }
  const Matrix x = call.matrix("x", call.activation());
  call.backend().forward(RouterLogits{x, call.out("logits", x.rows, call.integer("cols"), DType::f32), segments});
}

// x, dlogits, weight, bias; dx, dweight, dbias added to, each if given
void router_logits_backward(OpCall& call) {
  const RouterLayer layer = layer_of(call, call.args());
  call.backend().backward(RouterLogitsBackward{&layer, call.matrix("x", call.activation()),
                                               call.matrix("dlogits", DType::f32), call.update("dx", DType::f32),
                                               call.update_array("dweight"), call.update_array("dbias")});
}

// logits, records, segments [{begin, end, out, pooled?, groupStart, options?, controls?, frozen?, and the layer's}]
void router_forward(OpCall& call) {
  const std::vector<Napi::Object> sources = OpCall::list(call.args(), "segments");
  struct Parts {
    RouterShape shape;
    RouterLayer layer;
    RouterControls controls;
    std::vector<uint8_t> frozen;
  };
  std::vector<Parts> parts;
  int32_t width = 0;
  for (const Napi::Object& source : sources) {
    parts.push_back(
        {shape_of(source), layer_of(call, source), controls_of(source), OpCall::values<uint8_t>(source, "frozen")});
    width = std::max(width, parts.back().shape.width());
  }
  std::vector<RouterForward::Segment> segments;
  for (size_t i = 0; i < sources.size(); ++i) {
    RouterForward::Segment segment;
    segment.begin = OpCall::integer(sources[i], "begin");
    segment.end = OpCall::integer(sources[i], "end");
    segment.out = OpCall::integer(sources[i], "out");
    segment.pooled = OpCall::flag(sources[i], "pooled");
    segment.shape = &parts[i].shape;
    segment.layer = &parts[i].layer;
    segment.options = options_of(sources[i]);
    segment.controls = &parts[i].controls;
    if (!parts[i].frozen.empty()) segment.frozen_selection = parts[i].frozen.data();
    segments.push_back(segment);
  }
  const Matrix logits = call.update("logits", DType::f32);
  const Matrix routing = call.out("routing", call.integer("records"), width, DType::f32);
  call.backend().forward(RouterForward{logits, routing, segments});
  call.backend().synchronize();
}

// in, out (added to), runs [{begin, end, row}]
void sum_rows(OpCall& call) {
  std::vector<SumRows::Run> runs;
  for (const Napi::Object& source : OpCall::list(call.args(), "runs")) {
    runs.push_back({OpCall::integer(source, "begin"), OpCall::integer(source, "end"), OpCall::integer(source, "row")});
  }
  const Matrix in = call.matrix("in", DType::f32);
  call.backend().forward(SumRows{in, call.update("out", DType::f32), runs});
  call.backend().synchronize();
}

// out, accumulate?, runs [{begin, end, source, factor?}]
void spread_rows(OpCall& call) {
  std::vector<SpreadRows::Run> runs;
  for (const Napi::Object& source : OpCall::list(call.args(), "runs")) {
    const auto cols = static_cast<int64_t>(OpCall::values<float>(source, "source").size());
    runs.push_back({OpCall::integer(source, "begin"), OpCall::integer(source, "end"),
                    call.array<float>(source, "source"), cols,
                    static_cast<float>(OpCall::number(source, "factor", 1))});
  }
  call.backend().forward(SpreadRows{call.update("out", DType::f32), runs, call.flag("accumulate")});
  call.backend().synchronize();
}

void router_backward(OpCall& call) {
  const RouterShape shape = shape_of(call.args());
  const RouterLayer layer = layer_of(call, call.args());
  RouterBackward args;
  args.shape = &shape;
  args.layer = &layer;
  args.options = options_of(call.args());
  args.logits = call.matrix("logits", DType::f32);
  args.routing = call.matrix("routing", DType::f32);
  args.drouting = call.matrix("drouting", DType::f32);
  args.row_weight = call.array<float>("rowWeight");
  args.group_target = call.array<float>("groupTarget");
  args.expert_target = call.array<float>("expertTarget");
  const auto coefficient = [&](const char* name) { return static_cast<float>(call.number(name)); };
  args.coefficients = {coefficient("groupBalance"), coefficient("expertBalance"), coefficient("zLoss"),
                       coefficient("entropy"), coefficient("supervision")};
  const int64_t cols = shape.groups + (args.options.conditional ? shape.experts : 0);
  args.dlogits = call.out("dlogits", args.logits.rows, cols, DType::f32);
  args.dscore = call.update_array("dscore");
  args.dbalance = call.update_array("dbalance");
  args.dlog_scale = call.update_array("dlogScale");
  double losses[kRouterLosses] = {};
  args.losses = losses;
  call.backend().backward(args);
  call.backend().synchronize();
  Napi::Float64Array out = Napi::Float64Array::New(call.env(), kRouterLosses);
  std::copy(losses, losses + kRouterLosses, out.Data());
  call.result().Set("losses", out);
}

}  // namespace

std::vector<OpEntry> router_ops() {
  return {{"routerLogits", router_logits},
          {"routerLogitsBackward", router_logits_backward},
          {"routerForward", router_forward},
          {"routerBackward", router_backward},
          {"sumRows", sum_rows},
          {"spreadRows", spread_rows}};
}

}  // namespace at_moe
