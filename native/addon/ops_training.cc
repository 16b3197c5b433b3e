#include "addon/ops_call.h"

namespace at_moe {

namespace {

void cross_entropy(OpCall& call) {
  CrossEntropy args;
  args.logits = call.update("logits", DType::f32);
  args.labels = call.array<int32_t>("labels");
  args.weight = call.array<float>("weight");
  args.base_logits = call.matrix("baseLogits", DType::f32);
  args.kl_weight = call.array<float>("klWeight");
  args.loss = call.out_array("loss", args.logits.rows);
  if (args.base_logits) args.kl = call.out_array("kl", args.logits.rows);
  call.backend().forward(args);
}

// logits, rows [{temperature, topK, topP, minP, repetitionPenalty, seed, draw, history, banned, allowed}]
void sampling(OpCall& call) {
  const Matrix logits = call.matrix("logits", DType::f32);
  std::vector<SamplingRow> rows;
  std::vector<std::vector<int32_t>> ids;
  ids.reserve(3 * static_cast<size_t>(logits.rows));
  for (const Napi::Object& source : OpCall::list(call.args(), "rows")) {
    SamplingRow row;
    row.temperature = static_cast<float>(OpCall::number(source, "temperature"));
    row.top_k = static_cast<int32_t>(OpCall::number(source, "topK"));
    row.top_p = static_cast<float>(OpCall::number(source, "topP", 1));
    row.min_p = static_cast<float>(OpCall::number(source, "minP"));
    row.repetition_penalty = static_cast<float>(OpCall::number(source, "repetitionPenalty", 1));
    row.seed = static_cast<uint64_t>(OpCall::number(source, "seed"));
    row.draw = static_cast<uint64_t>(OpCall::number(source, "draw"));
    ids.push_back(OpCall::values<int32_t>(source, "history"));
    row.history = ids.back().data();
    row.history_length = static_cast<int64_t>(ids.back().size());
    ids.push_back(OpCall::values<int32_t>(source, "banned"));
    row.banned = ids.back().data();
    row.banned_length = static_cast<int64_t>(ids.back().size());
    if (OpCall::has(source, "allowed")) {
      ids.push_back(OpCall::values<int32_t>(source, "allowed"));
      row.allowed = reinterpret_cast<const uint32_t*>(ids.back().data());
    }
    rows.push_back(row);
  }
  Napi::Int32Array tokens = Napi::Int32Array::New(call.env(), rows.size());
  Napi::Float32Array log_probs = Napi::Float32Array::New(call.env(), rows.size());
  call.backend().sample(Sampling{logits, rows, tokens.Data(), log_probs.Data()});
  call.result().Set("tokens", tokens);
  call.result().Set("logProbs", log_probs);
}

void adamw(OpCall& call) {
  AdamW args;
  args.gradient = call.array<float>("gradient");
  args.parameter = call.update_array("parameter");
  args.moment1 = call.update_array("moment1");
  args.moment2 = call.update_array("moment2");
  args.count = static_cast<int64_t>(OpCall::values<float>(call.args(), "parameter").size());
  args.learning_rate = call.number("learningRate");
  args.beta1 = call.number("beta1", 0.9);
  args.beta2 = call.number("beta2", 0.999);
  args.epsilon = call.number("epsilon", 1e-8);
  args.weight_decay = call.number("weightDecay");
  args.gradient_scale = static_cast<float>(call.number("gradientScale", 1));
  args.step = call.integer("step", 1);
  call.backend().update(args);
}

void squared_norm(OpCall& call) {
  const int64_t count = static_cast<int64_t>(OpCall::values<float>(call.args(), "values").size());
  call.result().Set("norm", call.backend().squared_norm(SquaredNorm{call.array<float>("values"), count}));
}

}  // namespace

std::vector<OpEntry> training_ops() {
  return {{"crossEntropy", cross_entropy}, {"sampling", sampling}, {"adamw", adamw}, {"squaredNorm", squared_norm}};
}

}  // namespace at_moe
