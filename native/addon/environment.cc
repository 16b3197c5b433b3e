#include "addon/environment.h"

#include <utility>

#include "addon/write.h"

namespace at_moe {

void Environment::Queue::open(napi_threadsafe_function wake) {
  const std::lock_guard lock(mutex_);
  wake_ = wake;
}

void Environment::Queue::close() {
  const std::lock_guard lock(mutex_);
  wake_ = nullptr;
}

void Environment::Queue::push(Event event) {
  const std::lock_guard lock(mutex_);
  if (!wake_) return;
  events_.push_back(std::move(event));
  if (events_.size() == 1) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

std::vector<Event> Environment::Queue::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

Environment::Environment(Napi::Env env) : env_(env) {
  const Napi::String name = Napi::String::New(env, "at-moe");
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, on_wake, &wake_);
  if (status != napi_ok) throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, wake_);
  queue_->open(wake_);
  // Hooks run in reverse order: the engines are joined before the threadsafe function goes.
  env.AddCleanupHook(on_cleanup, this);
}

void Environment::on_cleanup(Environment* environment) {
  environment->queue_->close();
  std::vector<std::shared_ptr<Engine>> alive;
  for (const std::weak_ptr<Engine>& engine : environment->engines_) {
    if (std::shared_ptr<Engine> one = engine.lock()) alive.push_back(std::move(one));
  }
  for (const std::shared_ptr<Engine>& engine : alive) engine->request_stop();
  for (const std::shared_ptr<Engine>& engine : alive) engine->join();
  environment->disposing_.clear();
}

void Environment::on_wake(napi_env env, napi_value, void* environment, void*) {
  if (!env) return;
  try {
    static_cast<Environment*>(environment)->deliver(Napi::Env(env));
  } catch (const Napi::Error&) {
    // The environment is going down: JS cannot be called any more.
  }
}

void Environment::deliver(Napi::Env env) {
  const Napi::HandleScope scope(env);
  Napi::Array told = Napi::Array::New(env);
  for (Event& event : queue_->take()) {
    if (JobDone* done = std::get_if<JobDone>(&event)) {
      settle(env, *done);
      continue;
    }
    std::visit(
        [&](auto& one) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(one)>, JobDone>)
            told.Set(told.Length(), write_event(env, one));
        },
        event);
  }
  if (told.Length() > 0 && !dispatcher_.IsEmpty()) dispatcher_.Call({told});
}

void Environment::settle(Napi::Env env, JobDone& done) {
  const auto disposing = disposing_.find(done.job);
  if (disposing != disposing_.end()) {
    disposing->second->join();
    disposing_.erase(disposing);
  }
  const auto entry = promises_.find(done.job);
  if (entry == promises_.end()) return;
  const Napi::Promise::Deferred promise = entry->second;
  promises_.erase(entry);
  let_go();
  const Napi::Value value = write_result(env, done.result);
  if (std::holds_alternative<Failure>(done.result)) {
    promise.Reject(value);
  } else {
    promise.Resolve(value);
  }
}

void Environment::add_engine(const std::shared_ptr<Engine>& engine) {
  std::erase_if(engines_, [](const std::weak_ptr<Engine>& one) { return one.expired(); });
  engines_.push_back(engine);
}

Napi::Promise Environment::begin_job(int64_t job) {
  const auto promise = Napi::Promise::Deferred::New(env_);
  if (!promises_.emplace(job, promise).second) throw Napi::TypeError::New(env_, "job: the number is in use");
  hold();
  return promise.Promise();
}

Napi::Promise Environment::dispose(int64_t job, const std::shared_ptr<Engine>& engine) {
  const Napi::Promise promise = begin_job(job);
  disposing_[job] = engine;
  engine->stop(job);
  return promise;
}

void Environment::hold() {
  if (holds_++ == 0) napi_ref_threadsafe_function(env_, wake_);
}

void Environment::let_go() {
  if (--holds_ == 0) napi_unref_threadsafe_function(env_, wake_);
}

}  // namespace at_moe
