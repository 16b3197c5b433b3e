#include "addon/ops.h"
#include "backend/registry.h"

namespace at_moe {

static Napi::Value devices(const Napi::CallbackInfo& info) {
  Napi::Array list = Napi::Array::New(info.Env());
  for (const DeviceDescription& device : describe_devices()) {
    Napi::Object item = Napi::Object::New(info.Env());
    item.Set("name", device.name);
    item.Set("description", device.description);
    item.Set("memoryBytes", static_cast<double>(device.memory_bytes));
    item.Set("available", device.available);
    item.Set("reason", device.reason);
    list.Set(list.Length(), item);
  }
  return list;
}

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("ops", make_ops(env));
  exports.Set("devices", Napi::Function::New(env, devices));
  return exports;
}

}  // namespace at_moe

using at_moe::init;
NODE_API_MODULE(at_moe, init)
