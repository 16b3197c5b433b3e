// Fork and join over a fixed set of threads. The caller is worker 0 and takes part; each worker owns a contiguous range
// of the tasks and, when done, takes tasks of the others, so that a worker that is late (parked, descheduled) holds up a
// job by one task at most. Workers spin while a step is open and shortly after, and park otherwise. All pools of a process
// count who is awake: beyond the processors there are, a worker without work parks at once and none is woken, so that
// engines side by side do not push each other off them; the caller does the tasks of those that sleep. Denormals are
// flushed to zero in every worker and, while a job runs, in the caller: results never depend on which thread took a task.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace at_moe {

// Flush-to-zero and denormals-are-zero in this thread for the life of the object.
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals();
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

class Pool {
 public:
  // 0 threads: one per processor of `affinity`, without one per physical core. Worker i is bound to affinity[i % size], the
  // calling thread, which is worker 0, too. Fails with kUnsupported as check_affinity does.
  explicit Pool(int threads, const std::vector<int>& affinity = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int workers() const { return static_cast<int>(workers_.size()); }

  void begin_step();
  void end_step();

  // Of all pools of this process: threads that work, or spin for work; how often a worker parked to make room, and was
  // woken; and tasks done by another worker than the one they were given to.
  struct Census {
    int awake = 0;
    int64_t made_room = 0, woken = 0, taken = 0;
  };
  static Census census();

  // fn(task, worker) for every task in [0, tasks); returns when all are done. The first exception is rethrown here.
  // One caller thread at a time, and never from inside a task.
  template <typename Function>
  void run(int64_t tasks, Function&& fn) {
    using Fn = std::remove_reference_t<Function>;
    run_tasks(
        tasks, [](void* context, int64_t task, int worker) { (*static_cast<Fn*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // fn(begin, end, worker) over [0, count) in pieces of `grain` (the last may be shorter).
  template <typename Function>
  void run_ranges(int64_t count, int64_t grain, Function&& fn) {
    run((count + grain - 1) / grain, [&](int64_t task, int worker) {
      const int64_t begin = task * grain;
      fn(begin, begin + grain < count ? begin + grain : count, worker);
    });
  }

 private:
  using Task = void (*)(void* context, int64_t task, int worker);
  struct alignas(64) Worker {
    std::atomic<int64_t> next{0};  // first task not taken of the worker's range
    int64_t end = 0;
    alignas(64) std::atomic<uint64_t> claim{0};  // 4 * job + state
    std::thread thread;
  };

  void run_tasks(int64_t tasks, Task task, void* context);
  void wake_all();
  void wake_for_room();
  void work(int self);
  void work_thread(int self);
  uint64_t wait_for_job(uint64_t seen);

  std::vector<std::unique_ptr<Worker>> workers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint64_t> job_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> step_open_{false};
  std::atomic<bool> stop_{false};
};

}  // namespace at_moe
