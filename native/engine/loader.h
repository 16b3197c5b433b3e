// A thread beside the engine's, with a backend of its own: it makes and frees the device memory of mixtures while the
// engine's thread runs steps. Tasks run one after the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "backend/backend.h"
#include "engine/event.h"

namespace at_moe {

class Loader {
 public:
  // On the loader's thread; `stop`: the engine ends.
  using Work = std::function<void(Backend& backend, const std::atomic<bool>& stop)>;
  // On the engine's thread, in `collect`; null: the work came to its end.
  using Done = std::function<void(const Failure* failure)>;

  // `wake` is called on the loader's thread when there is something to collect.
  Loader(std::unique_ptr<Backend> backend, std::function<void()> wake);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  void post(Work work, Done done = {});
  void collect();
  MemoryUse memory() const { return backend_->memory(); }

 private:
  struct Task {
    Work work;
    Done done;
    std::optional<Failure> failure;
  };
  void loop();
  bool run_next();

  std::unique_ptr<Backend> backend_;
  std::function<void()> wake_;
  std::mutex mutex_;
  std::condition_variable posted_;
  std::deque<Task> tasks_, ended_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace at_moe
