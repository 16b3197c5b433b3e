#include "addon/read_requests.h"

#include "addon/read_tensors.h"

namespace at_moe {

namespace {

constexpr int64_t kMostProcessors = 1 << 20;

SamplingRequest read_sampling(const Fields& from) {
  SamplingRequest sampling;
  sampling.temperature = static_cast<float>(from.number("temperature"));
  sampling.top_k = static_cast<int32_t>(from.integer("topK"));
  sampling.top_p = static_cast<float>(from.number("topP"));
  sampling.min_p = static_cast<float>(from.number("minP"));
  sampling.repetition_penalty = static_cast<float>(from.number("repetitionPenalty"));
  sampling.seed = from.seed("seed");
  return sampling;
}

RoutingRequest read_routing(const Fields& from) {
  using Kind = RoutingRequest::Kind;
  RoutingRequest routing;
  routing.kind =
      from.choice<Kind>("kind", {{"base", Kind::kBase}, {"mixture", Kind::kMixture}, {"fixed", Kind::kFixed}});
  if (routing.kind == Kind::kBase) return routing;
  routing.mixture = from.integer("mixture");
  if (routing.kind == Kind::kFixed) {
    routing.weights = from.required_values<float>("weights");
    routing.alone = from.flag("alone");
    return routing;
  }
  routing.selection = from.values<uint8_t>("selection");
  if (from.has("options")) routing.options = read_router_options(from.child("options"));
  if (from.has("controls")) {
    const Fields controls = from.child("controls");
    routing.controls.group_bias = controls.values<float>("groupBias");
    routing.controls.expert_bias = controls.values<float>("expertBias");
    routing.controls.group_denied = controls.values<uint8_t>("groupDenied");
    routing.controls.expert_denied = controls.values<uint8_t>("expertDenied");
    routing.controls.group_set = controls.values<float>("groupWeight");
    routing.controls.expert_set = controls.values<float>("expertWeight");
  }
  return routing;
}

Scheduling read_scheduling(const Fields& from) {
  Scheduling scheduling;
  scheduling.priority = from.integer("priority", 0);
  if (!from.has("timeoutMs")) return scheduling;
  using Milliseconds = std::chrono::duration<double, std::milli>;
  const Milliseconds timeout(from.number("timeoutMs"));
  scheduling.deadline = Scheduling::Clock::now() + std::chrono::duration_cast<Scheduling::Clock::duration>(timeout);
  return scheduling;
}

}  // namespace

EngineOptions read_engine_options(const Fields& from) {
  EngineOptions options;
  options.device = from.text("device");
  options.threads = static_cast<int>(from.integer("threads", 0));
  if (options.threads < 0) from.wrong("threads", "no negative number");
  if (from.has("affinity")) {
    for (int64_t processor : from.integers("affinity")) {
      if (processor < 0 || processor > kMostProcessors) from.wrong("affinity", "numbers of processors");
      options.affinity.push_back(static_cast<int>(processor));
    }
  }
  return options;
}

GenerateRequest read_generate_request(const Fields& from) {
  GenerateRequest request;
  request.scheduling = read_scheduling(from);
  request.n = from.integer("n", 1);
  if (request.n < 1) from.wrong("n", "at least 1");
  if (from.has("maxUnread")) request.max_unread = from.integer("maxUnread");
  if (request.max_unread.value_or(1) < 1) from.wrong("maxUnread", "at least 1");
  request.ids = from.required_values<int32_t>("ids");
  request.max_tokens = from.integer("maxTokens");
  if (request.max_tokens < 0) from.wrong("maxTokens", "no negative number");
  request.stop_tokens = from.required_values<int32_t>("stopTokens");
  request.banned_tokens = from.values<int32_t>("bannedTokens");
  request.sampling = read_sampling(from.child("sampling"));
  request.routing = read_routing(from.child("routing"));
  request.trace = from.flag("trace", false);
  request.log_probs = from.flag("logProbs", false);
  if (from.has("grammar")) request.grammar = from.integer("grammar");
  if (from.has("session")) {
    const Fields session = from.child("session");
    request.session = session.integer("id");
    if (request.n > 1) from.wrong("n", "1 with a session");
    if (session.has("keep")) request.keep = session.integer("keep");
    if (*request.session < 0 || request.keep.value_or(0) < 0) from.wrong("session", "no negative number");
    request.reroute = session.flag("reroute", false);
  }
  return request;
}

ScoreRequest read_score_request(const Fields& from) {
  ScoreRequest request;
  request.scheduling = read_scheduling(from);
  request.ids = from.required_values<int32_t>("ids");
  request.first = from.integer("first");
  request.routing = read_routing(from.child("routing"));
  return request;
}

TrainOptions read_train_options(const Fields& from) {
  using Target = TrainTarget;
  TrainOptions options;
  const TrainOptions defaults;
  options.target = from.choice<Target>(
      "target",
      {{"adapter", Target::kAdapter}, {"router", Target::kRouter}, {"joint", Target::kJoint}, {"base", Target::kBase}});
  if (from.has("coefficients")) {
    const Fields values = from.child("coefficients");
    auto coefficient = [&](const char* name) { return static_cast<float>(values.number(name, 0)); };
    options.coefficients = {coefficient("groupBalance"), coefficient("expertBalance"), coefficient("zLoss"),
                            coefficient("entropy"), coefficient("supervision")};
  }
  auto value = [&](const char* name, float fallback) { return static_cast<float>(from.number(name, fallback)); };
  options.base_kl = value("baseKl", defaults.base_kl);
  options.scale_min = value("scaleMin", defaults.scale_min);
  options.dropout = value("dropout", defaults.dropout);
  options.recompute = from.flag("recompute", defaults.recompute);
  options.seed = from.seed("seed");
  options.beta1 = value("beta1", defaults.beta1);
  options.beta2 = value("beta2", defaults.beta2);
  options.epsilon = value("epsilon", defaults.epsilon);
  options.weight_decay = value("weightDecay", defaults.weight_decay);
  options.max_grad_norm = value("maxGradNorm", defaults.max_grad_norm);
  return options;
}

MicroBatch read_micro_batch(const Fields& from) {
  MicroBatch batch;
  batch.ids = from.required_values<int32_t>("ids");
  batch.offsets = from.required_values<int32_t>("offsets");
  batch.prompt_lengths = from.required_values<int32_t>("promptLengths");
  batch.labels = from.required_values<int32_t>("labels");
  batch.loss_weights = from.values<float>("lossWeights");
  batch.kl_mask = from.values<uint8_t>("klMask");
  batch.group_target = from.values<float>("groupTarget");
  batch.expert_target = from.values<float>("expertTarget");
  batch.selection = from.values<uint8_t>("selection");
  for (double id : from.values<double>("exampleIds")) batch.example_ids.push_back(static_cast<int64_t>(id));
  batch.step_loss_weight = from.number("stepLossWeight");
  batch.step_kl_rows = from.number("stepKlRows", 0);
  batch.step_tokens = from.number("stepTokens");
  return batch;
}

TrainerState read_trainer_state(const Fields& from) {
  TrainerState state;
  state.step = from.integer("step");
  for (const Fields& tensor : from.list("tensors")) {
    state.tensors.push_back({tensor.text("name"), tensor.integers("shape"), tensor.required_values<float>("values")});
  }
  return state;
}

MergeRequest read_merge_request(const Fields& from) {
  MergeRequest request;
  TensorReader reader;
  request.mixture = from.integer("mixture");
  request.base = reader.read_weight(from.child("base"));
  if (request.base.shape.size() != 2) from.wrong("base", "a matrix");
  request.layer = static_cast<int>(from.integer("layer"));
  request.module = module_by_name(from.text("module"));
  request.weights = from.required_values<float>("weights");
  request.alone = from.flag("alone");
  return request;
}

BenchRequest read_bench_request(const Fields& from) {
  BenchRequest request;
  request.decode = from.choice<bool>("kind", {{"decode", true}, {"prefill", false}});
  request.rows = from.integer("rows");
  request.context = from.integer("context");
  request.steps = from.integer("steps");
  for (const Fields& routing : from.list("routings")) request.routings.push_back(read_routing(routing));
  request.interleave = from.flag("interleave");
  return request;
}

}  // namespace at_moe
