// Loading starts no thread and touches no device.
#include "addon/engine_wrap.h"
#include "addon/environment.h"
#include "addon/ops.h"
#include "addon/write.h"
#include "core/control_group.h"

namespace at_moe {

namespace {

Napi::Value devices(const Napi::CallbackInfo& info) {
  try {
    return write_devices(info.Env(), describe_devices());
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw make_error(info.Env(), failure_of(std::current_exception()));
  }
}

// Of a fake tree, for tests: what the control groups below `root` allow.
Napi::Value control_groups(const Napi::CallbackInfo& info) {
  const std::string root = info[0].ToString();
  Napi::Array memory = Napi::Array::New(info.Env());
  for (const MemoryGroup& group : memory_groups(root)) {
    Napi::Object one = Napi::Object::New(info.Env());
    one.Set("limit", static_cast<double>(group.limit));
    one.Set("used", static_cast<double>(group.used));
    memory.Set(memory.Length(), one);
  }
  Napi::Object found = Napi::Object::New(info.Env());
  found.Set("cores", group_cores(root));
  found.Set("memory", memory);
  return found;
}

Napi::Value thread_census(const Napi::CallbackInfo& info) {
  const ThreadCensus census = count_cpu_threads();
  Napi::Object found = Napi::Object::New(info.Env());
  found.Set("awake", census.awake);
  found.Set("processors", census.processors);
  found.Set("madeRoom", static_cast<double>(census.made_room));
  found.Set("woken", static_cast<double>(census.woken));
  found.Set("taken", static_cast<double>(census.taken));
  return found;
}

void set_dispatcher(const Napi::CallbackInfo& info) {
  if (!info[0].IsFunction()) throw Napi::TypeError::New(info.Env(), "dispatcher: expected a function");
  Environment::of(info.Env()).set_dispatcher(info[0].As<Napi::Function>());
}

void hold(const Napi::CallbackInfo& info) { Environment::of(info.Env()).hold(); }

void let_go(const Napi::CallbackInfo& info) { Environment::of(info.Env()).let_go(); }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports.Set("ops", make_ops(env));
  exports.Set("devices", Napi::Function::New(env, devices));
  exports.Set("controlGroups", Napi::Function::New(env, control_groups));
  exports.Set("threadCensus", Napi::Function::New(env, thread_census));
  exports.Set("packedLayout", Napi::String::New(env, cpu_packed_layout()));
  exports.Set("setDispatcher", Napi::Function::New(env, set_dispatcher));
  exports.Set("hold", Napi::Function::New(env, hold));
  exports.Set("letGo", Napi::Function::New(env, let_go));
  exports.Set("Engine", EngineWrap::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(at_moe, init)

}  // namespace at_moe
