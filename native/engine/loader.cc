#include "engine/loader.h"

#include <utility>

namespace at_moe {

Loader::Loader(std::unique_ptr<Backend> backend, std::function<void()> wake)
    : backend_(std::move(backend)), wake_(std::move(wake)), thread_([this] { loop(); }) {}

// What the tasks hold goes with them, before the backend.
Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    posted_.notify_one();
  }
  thread_.join();
}

void Loader::post(Work work, Done done) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back({std::move(work), std::move(done), {}});
  posted_.notify_one();
}

void Loader::collect() {
  std::deque<Task> ended;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(ended_);
  }
  for (const Task& task : ended) task.done(task.failure ? &*task.failure : nullptr);
}

void Loader::loop() {
  backend_->enter_thread();
  while (run_next()) {
  }
}

bool Loader::run_next() {
  Task task;
  {
    std::unique_lock lock(mutex_);
    posted_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
    if (stop_) return false;
    task = std::move(tasks_.front());
    tasks_.pop_front();
  }
  try {
    task.work(*backend_, stop_);
    backend_->synchronize();
  } catch (...) {
    task.failure = failure_of(std::current_exception());
  }
  task.work = {};
  if (!task.done) return true;
  {
    const std::lock_guard lock(mutex_);
    ended_.push_back(std::move(task));
  }
  wake_();
  return true;
}

}  // namespace at_moe
