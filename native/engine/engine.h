// One thread with one device and one model. Calls come from any thread and return at once; what happens is told through
// the sink.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/event.h"
#include "engine/requests.h"

namespace at_moe {

class Worker;

class Engine {
 public:
  using Action = std::function<void(Worker&)>;
  using Body = std::function<Pass(Worker&, JobResult&)>;

  Engine(EngineOptions options, std::shared_ptr<EventSink> sink);
  ~Engine();  // stops and joins
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a job; its end is told with its number. After `stop` it is rejected with kDisposed.
  void run(int64_t job, int64_t lane, Body body);
  // All of them, or none where the queue has no room for all.
  void generate(std::vector<GenerateRequest> requests);
  void score(ScoreRequest request);
  // Told between two steps, whatever jobs wait.
  void stats(int64_t job);
  // Something without an end of its own; dropped after `stop`.
  void post(Action action);

  // Rejects all jobs with kDisposed and ends the thread; `job` is told when the device's memory is free.
  void stop(int64_t job);
  void request_stop();
  void join();

 private:
  void loop();
  bool take(std::deque<Action>& actions, bool wait, Scheduling::Clock::time_point until);
  bool try_post(Action action);

  EngineOptions options_;
  std::shared_ptr<EventSink> sink_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Action> inbox_;
  std::vector<int64_t> stop_jobs_;
  bool stopping_ = false, stopped_ = false;
  std::thread thread_;
};

}  // namespace at_moe
