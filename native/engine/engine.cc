#include "engine/engine.h"

#include <utility>

#include "core/pass.h"
#include "engine/worker.h"

namespace at_moe {

namespace {

const Failure kDisposedFailure{Code::kDisposed, "the model has been disposed"};

}  // namespace

Engine::Engine(EngineOptions options, std::shared_ptr<EventSink> sink)
    : options_(std::move(options)), sink_(std::move(sink)), thread_([this] { loop(); }) {}

Engine::~Engine() {
  request_stop();
  join();
}

bool Engine::try_post(Action action) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  inbox_.push_back(std::move(action));
  wake_.notify_one();
  return true;
}

void Engine::post(Action action) { try_post(std::move(action)); }

void Engine::run(int64_t job, int64_t lane, Body body) {
  const bool posted = try_post([job, lane, body = std::move(body)](Worker& worker) {
    worker.lanes().add(lane, job, [&worker, body](JobResult& result) { return body(worker, result); });
  });
  if (!posted) sink_->push(JobDone{job, kDisposedFailure});
}

void Engine::generate(std::vector<GenerateRequest> requests) {
  const auto shared = std::make_shared<const std::vector<GenerateRequest>>(std::move(requests));
  if (try_post([shared](Worker& worker) { worker.generate(*shared); })) return;
  for (const GenerateRequest& request : *shared) refuse(*sink_, request, kDisposedFailure);
}

void Engine::score(ScoreRequest request) {
  const int64_t job = request.job;
  const bool posted =
      try_post([request = std::move(request)](Worker& worker) mutable { worker.score(std::move(request)); });
  if (!posted) sink_->push(JobDone{job, kDisposedFailure});
}

void Engine::stats(int64_t job) {
  const bool posted = try_post([this, job](Worker& worker) { sink_->push(JobDone{job, worker.stats()}); });
  if (!posted) sink_->push(JobDone{job, kDisposedFailure});
}

void Engine::stop(int64_t job) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (!stopped_) {
      stop_jobs_.push_back(job);
      wake_.notify_one();
      return;
    }
  }
  sink_->push(JobDone{job, {}});
}

void Engine::request_stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_.notify_one();
}

void Engine::join() {
  if (thread_.joinable()) thread_.join();
}

// False when the engine is to stop.
bool Engine::take(std::deque<Action>& actions, bool wait, Scheduling::Clock::time_point until) {
  std::unique_lock lock(mutex_);
  auto ready = [this] { return stopping_ || !inbox_.empty(); };
  if (wait && until != Scheduling::Clock::time_point::max()) {
    wake_.wait_until(lock, until, ready);
  } else if (wait) {
    wake_.wait(lock, ready);
  }
  actions = std::exchange(inbox_, {});
  return !stopping_;
}

void Engine::loop() {
  {
    Worker worker(options_, *sink_, [this] { post([](Worker&) {}); });
    std::deque<Action> actions;
    auto guarded = [&worker](const auto& work) {
      try {
        work();
      } catch (...) {
        worker.reject_all(failure_of(std::current_exception()));
      }
    };
    for (bool running = true; running;) {
      const bool idle = worker.idle();
      if (idle) worker.rest();
      running = take(actions, idle, worker.next_deadline());
      for (const Action& action : actions) guarded([&] { action(worker); });
      if (running) guarded([&] { worker.step(); });
    }
    worker.reject_all(kDisposedFailure);
    worker.rest();
  }
  std::vector<int64_t> jobs;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    jobs.swap(stop_jobs_);
  }
  for (int64_t job : jobs) sink_->push(JobDone{job, {}});
}

}  // namespace at_moe
