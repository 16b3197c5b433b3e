#include "addon/write.h"

#include <cstring>
#include <initializer_list>

namespace at_moe {

namespace {

std::string code_text(Code code) { return concat("ERR_AT_MOE_", code_name(code)); }

template <typename T>
Napi::TypedArrayOf<T> array_of(Napi::Env env, const std::vector<T>& values) {
  auto array = Napi::TypedArrayOf<T>::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

struct Number {
  const char* name;
  double value;
};

Napi::Object numbers(Napi::Env env, std::initializer_list<Number> values) {
  Napi::Object object = Napi::Object::New(env);
  for (const Number& one : values) object.Set(one.name, one.value);
  return object;
}

double number(size_t value) { return static_cast<double>(value); }
double number(int64_t value) { return static_cast<double>(value); }

Napi::Object event_of(Napi::Env env, const char* type, int64_t id) {
  Napi::Object object = numbers(env, {{"id", number(id)}});
  object.Set("type", type);
  return object;
}

Napi::Array tensors(Napi::Env env, const std::vector<NamedValues>& values) {
  Napi::Array list = Napi::Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    Napi::Object tensor = Napi::Object::New(env);
    Napi::Array shape = Napi::Array::New(env, values[i].shape.size());
    for (size_t d = 0; d < values[i].shape.size(); ++d) shape.Set(static_cast<uint32_t>(d), number(values[i].shape[d]));
    tensor.Set("name", values[i].name);
    tensor.Set("shape", shape);
    tensor.Set("values", array_of(env, values[i].values));
    list.Set(static_cast<uint32_t>(i), tensor);
  }
  return list;
}

struct ResultWriter {
  Napi::Env env;

  Napi::Value operator()(std::monostate) const { return env.Undefined(); }
  Napi::Value operator()(const Failure& failure) const { return make_error(env, failure).Value(); }
  Napi::Value operator()(const ModelInfo& info) const {
    Napi::Object object = numbers(env, {{"contextLength", number(info.context_length)},
                                        {"kvTokens", number(info.kv_tokens)},
                                        {"maxBatch", number(info.max_batch)}});
    object.Set("device", info.device);
    object.Set("weights", name_of(info.weights));
    if (info.expert_weights) object.Set("expertWeights", name_of(*info.expert_weights));
    object.Set("mapped", info.mapped);
    return object;
  }
  Napi::Value operator()(const MixtureInfo& info) const {
    return numbers(env, {{"mixture", number(info.mixture)},
                         {"deviceBytes", number(info.device_bytes)},
                         {"recordWidth", number(info.record_width)}});
  }
  Napi::Value operator()(const TrainerInfo& info) const { return Napi::Number::New(env, number(info.trainer)); }
  Napi::Value operator()(const MicroBatchResult& result) const {
    Napi::Object object = numbers(env, {{"loss", result.loss},
                                        {"kl", result.kl},
                                        {"auxiliary", result.auxiliary},
                                        {"badSequence", number(result.bad_sequence)}});
    const auto& losses = result.router_losses;
    object.Set("routerLosses", numbers(env, {{"groupBalance", losses[kGroupBalance]},
                                             {"expertBalance", losses[kExpertBalance]},
                                             {"zLoss", losses[kZLoss]},
                                             {"entropy", losses[kEntropy]},
                                             {"supervision", losses[kSupervision]}}));
    return object;
  }
  Napi::Value operator()(const StepResult& result) const { return Napi::Number::New(env, result.gradient_norm); }
  Napi::Value operator()(const std::vector<NamedValues>& values) const { return tensors(env, values); }
  Napi::Value operator()(const TrainerState& state) const {
    Napi::Object object = numbers(env, {{"step", number(state.step)}});
    object.Set("tensors", tensors(env, state.tensors));
    return object;
  }
  Napi::Value operator()(const std::vector<float>& values) const { return array_of(env, values); }
  Napi::Value operator()(const MemoryStatement& memory) const {
    return numbers(env, {{"model", number(memory.model)},
                         {"mapped", number(memory.mapped)},
                         {"kv", number(memory.kv)},
                         {"workspaces", number(memory.workspaces)},
                         {"mixtures", number(memory.mixtures)},
                         {"trainers", number(memory.trainers)},
                         {"kvFreeTokens", number(memory.kv_free_tokens)},
                         {"kvTokens", number(memory.kv_tokens)}});
  }
  Napi::Value operator()(const EngineStats& stats) const {
    return numbers(env, {{"running", number(stats.running)},
                         {"queued", number(stats.queued)},
                         {"stalled", number(stats.stalled)},
                         {"steps", number(stats.steps)},
                         {"batchSize", number(stats.batch_size)},
                         {"pagesUsed", number(stats.pages_used)},
                         {"pagesCached", number(stats.pages_cached)},
                         {"pagesFree", number(stats.pages_free)},
                         {"pagesOnHost", number(stats.pages_on_host)},
                         {"lookedUpTokens", number(stats.looked_up_tokens)},
                         {"hitTokens", number(stats.hit_tokens)},
                         {"promptTokens", number(stats.prompt_tokens)},
                         {"completionTokens", number(stats.completion_tokens)},
                         {"preemptions", number(stats.preemptions)},
                         {"restoredTokens", number(stats.restored_tokens)},
                         {"requests", number(stats.requests)},
                         {"refused", number(stats.refused)},
                         {"expired", number(stats.expired)},
                         {"adapterBudget", number(stats.adapter_budget)},
                         {"adapterBytes", number(stats.adapter_bytes)},
                         {"adapterPeakBytes", number(stats.adapter_peak_bytes)},
                         {"adaptersResident", number(stats.adapters_resident)},
                         {"adaptersPinned", number(stats.adapters_pinned)},
                         {"adapterHits", number(stats.adapter_hits)},
                         {"adapterMisses", number(stats.adapter_misses)},
                         {"adapterLoads", number(stats.adapter_loads)},
                         {"adapterEvictions", number(stats.adapter_evictions)}});
  }
  Napi::Value operator()(const BenchResult& result) const {
    Napi::Object object = Napi::Object::New(env);
    Napi::Array seconds = Napi::Array::New(env);
    for (const std::vector<double>& steps : result.seconds) seconds.Set(seconds.Length(), array_of(env, steps));
    object.Set("seconds", seconds);
    const DeviceWork& work = result.work;
    object.Set("work", numbers(env, {{"launches", number(work.launches)},
                                     {"graphs", number(work.graphs)},
                                     {"captures", number(work.captures)},
                                     {"uploads", number(work.uploads)},
                                     {"downloads", number(work.downloads)}}));
    return object;
  }
  Napi::Value operator()(const QuantizedTensor& result) const {
    Napi::Object object = Napi::Object::New(env);
    object.Set("values", array_of(env, result.values));
    object.Set("scales", array_of(env, result.scales));
    return object;
  }
  Napi::Value operator()(const PackedSections& result) const {
    Napi::Object object = Napi::Object::New(env);
    for (const auto& [name, bytes] : result.sizes) object.Set(name, Napi::Number::New(env, bytes));
    return object;
  }
  Napi::Value operator()(const std::vector<uint8_t>& result) const { return array_of(env, result); }
  Napi::Value operator()(const ProbeResult& result) const {
    return numbers(
        env, {{"readRate", result.read_rate}, {"fmaRate", result.fma_rate}, {"productRate", result.product_rate}});
  }
  Napi::Value operator()(const FileCopy& result) const {
    return numbers(
        env, {{"bytes", result.bytes}, {"seconds", result.seconds}, {"processorSeconds", result.processor_seconds}});
  }
};

const char* reason_text(DoneEvent::Reason reason) {
  switch (reason) {
    case DoneEvent::Reason::kStop: return "stop";
    case DoneEvent::Reason::kLength: return "length";
    case DoneEvent::Reason::kCancelled: return "cancelled";
    case DoneEvent::Reason::kError: return "error";
  }
  return "error";
}

}  // namespace

Napi::Error make_error(Napi::Env env, const Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.message);
  error.Set("code", code_text(failure.code));
  return error;
}

Napi::Value write_result(Napi::Env env, const JobResult& result) { return std::visit(ResultWriter{env}, result); }

Napi::Object write_event(Napi::Env env, const TokenEvent& event) {
  Napi::Object object = event_of(env, "token", event.sequence);
  object.Set("token", event.token);
  object.Set("logProb", static_cast<double>(event.log_prob));
  return object;
}

Napi::Object write_event(Napi::Env env, const TraceEvent& event) {
  Napi::Object object = event_of(env, "trace", event.sequence);
  object.Set("position", number(event.position));
  object.Set("layers", number(event.trace.layers));
  object.Set("rows", number(event.trace.rows));
  object.Set("width", number(event.trace.width));
  object.Set("records", array_of(env, event.trace.records));
  return object;
}

Napi::Object write_event(Napi::Env env, const DoneEvent& event) {
  Napi::Object object = event_of(env, "done", event.sequence);
  object.Set("reason", reason_text(event.reason));
  if (event.reason == DoneEvent::Reason::kStop) object.Set("stopToken", event.stop_token);
  if (event.reason == DoneEvent::Reason::kError) {
    object.Set("code", code_text(event.failure.code));
    object.Set("message", event.failure.message);
  }
  object.Set("usage", numbers(env, {{"promptTokens", number(event.usage.prompt_tokens)},
                                    {"completionTokens", number(event.usage.completion_tokens)},
                                    {"cachedTokens", number(event.usage.cached_tokens)},
                                    {"contextTokens", number(event.usage.context_tokens)}}));
  return object;
}

Napi::Object write_event(Napi::Env env, const ProgressEvent& event) {
  Napi::Object object = event_of(env, "progress", event.job);
  object.Set("done", number(event.done));
  object.Set("total", number(event.total));
  return object;
}

Napi::Value write_devices(Napi::Env env, const std::vector<DeviceDescription>& devices) {
  Napi::Array list = Napi::Array::New(env, devices.size());
  for (size_t i = 0; i < devices.size(); ++i) {
    Napi::Object device = numbers(env, {{"memoryBytes", number(devices[i].memory_bytes)}});
    device.Set("name", devices[i].name);
    device.Set("description", devices[i].description);
    device.Set("available", devices[i].available);
    device.Set("reason", devices[i].reason);
    list.Set(static_cast<uint32_t>(i), device);
  }
  return list;
}

}  // namespace at_moe
