// Loading starts no thread and touches no device.
#include "addon/engine_wrap.h"
#include "addon/environment.h"
#include "addon/ops.h"
#include "addon/write.h"

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
  exports.Set("setDispatcher", Napi::Function::New(env, set_dispatcher));
  exports.Set("hold", Napi::Function::New(env, hold));
  exports.Set("letGo", Napi::Function::New(env, let_go));
  exports.Set("Engine", EngineWrap::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(at_moe, init)

}  // namespace at_moe
