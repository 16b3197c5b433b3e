#include "addon/ops.h"

#include <map>
#include <memory>

#include "addon/ops_call.h"
#include "backend/registry.h"
#include "core/status.h"

namespace at_moe {

namespace {

using Backends = std::map<std::pair<std::string, int>, std::unique_ptr<Backend>>;

Napi::Value run_op(const OpEntry& op, Backends& backends, const Napi::CallbackInfo& info) {
  if (info.Length() < 2 || !info[0].IsString() || !info[1].IsObject()) {
    throw Napi::TypeError::New(info.Env(), concat(op.name, "(device[/activation type], arguments, threads?)"));
  }
  const std::string device = info[0].As<Napi::String>();
  const int threads = info[2].IsNumber() ? info[2].As<Napi::Number>().Int32Value() : 1;
  try {
    std::unique_ptr<Backend>& backend = backends[{device, threads}];
    if (!backend) {
      const size_t slash = device.find('/');
      const DType activation =
          slash == std::string::npos ? DType::f32 : number_type(storage_named(device.substr(slash + 1)));
      backend = create_backend(device.substr(0, slash), {.threads = threads, .activation = activation});
    }
    OpCall call(*backend, info[1].As<Napi::Object>());
    backend->begin_step();
    op.run(call);
    call.download();
    backend->end_step();
    return call.result();
  } catch (const Error& error) {
    Napi::Error wrapped = Napi::Error::New(info.Env(), error.what());
    wrapped.Set("code", concat("ERR_AT_MOE_", code_name(error.code())));
    throw wrapped;
  }
}

}  // namespace

Napi::Object make_ops(Napi::Env env) {
  const auto backends = std::make_shared<Backends>();
  Napi::Object ops = Napi::Object::New(env);
  for (const auto& table : {elementwise_ops(), linear_ops(), router_ops(), training_ops(), grammar_ops()}) {
    for (const OpEntry& op : table) {
      ops.Set(op.name, Napi::Function::New(
                           env, [op, backends](const Napi::CallbackInfo& info) { return run_op(op, *backends, info); },
                           op.name));
    }
  }
  return ops;
}

}  // namespace at_moe
