// Results and events of the engine into JS values.
#pragma once

#include <napi.h>

#include <exception>

#include "backend/registry.h"
#include "engine/event.h"

namespace at_moe {

Napi::Error make_error(Napi::Env env, const Failure& failure);
// C++ exceptions end here.
template <typename F>
auto guarded(const Napi::CallbackInfo& info, F&& f) {
  try {
    return f();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw make_error(info.Env(), failure_of(std::current_exception()));
  }
}
Napi::Value write_result(Napi::Env env, const JobResult& result);
Napi::Object write_event(Napi::Env env, const TokenEvent& event);
Napi::Object write_event(Napi::Env env, const TraceEvent& event);
Napi::Object write_event(Napi::Env env, const DoneEvent& event);
Napi::Object write_event(Napi::Env env, const ProgressEvent& event);
Napi::Value write_devices(Napi::Env env, const std::vector<DeviceDescription>& devices);

}  // namespace at_moe
