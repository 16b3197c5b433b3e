// What one JS environment (the main thread, a worker) owns: its engines, its promises, and the one threadsafe function
// through which engine threads are heard. The function holds the event loop while jobs are in flight, and while lib says so:
// sequences hold it only while somebody waits for them.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace at_moe {

class Environment {
 public:
  explicit Environment(Napi::Env env);
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  std::shared_ptr<EventSink> sink() const { return queue_; }
  // The one function of lib that gets the events of sequences and progress, as an array.
  void set_dispatcher(Napi::Function dispatcher) { dispatcher_ = Napi::Persistent(dispatcher); }

  void add_engine(const std::shared_ptr<Engine>& engine);
  // The promise of a job; settled when its end is told.
  Napi::Promise begin_job(int64_t job);
  // Stops the engine; its thread is joined when that is done.
  Napi::Promise dispose(int64_t job, const std::shared_ptr<Engine>& engine);
  // As often let go as held, the event loop may end.
  void hold();
  void let_go();

 private:
  // Events on their way from engine threads to the JS thread.
  class Queue : public EventSink {
   public:
    void open(napi_threadsafe_function wake);
    void close();
    void push(Event event) override;
    std::vector<Event> take();

   private:
    std::mutex mutex_;
    std::vector<Event> events_;
    napi_threadsafe_function wake_ = nullptr;
  };

  static void on_wake(napi_env env, napi_value function, void* environment, void* data);
  static void on_cleanup(Environment* environment);

  void deliver(Napi::Env env);
  void settle(Napi::Env env, JobDone& done);

  Napi::Env env_;
  napi_threadsafe_function wake_ = nullptr;
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  Napi::FunctionReference dispatcher_;
  std::unordered_map<int64_t, Napi::Promise::Deferred> promises_;
  std::unordered_map<int64_t, std::shared_ptr<Engine>> disposing_;
  std::vector<std::weak_ptr<Engine>> engines_;
  int64_t holds_ = 0;
};

}  // namespace at_moe
