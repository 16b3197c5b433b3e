#include "cpu/pool.h"

#include <algorithm>
#include <chrono>

#include "cpu/processor.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace at_moe {

namespace {

constexpr auto kSpinInStep = std::chrono::microseconds(1000);
constexpr auto kSpinAfterStep = std::chrono::microseconds(50);

// States of Worker::claim within job g, stored as 4 g + state. A value of an earlier job means: not joined yet.
constexpr uint64_t kJoined = 1, kDone = 2, kClosed = 3;

#if defined(__x86_64__) || defined(_M_X64)
constexpr uint32_t kFlushBits = 0x8040;  // FTZ | DAZ
uint64_t read_control() { return _mm_getcsr(); }
void write_control(uint64_t value) { _mm_setcsr(static_cast<uint32_t>(value)); }
void relax() { _mm_pause(); }
#elif defined(__aarch64__)
constexpr uint64_t kFlushBits = uint64_t{1} << 24;  // FZ
uint64_t read_control() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void write_control(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
void relax() { asm volatile("yield"); }
#else
constexpr uint64_t kFlushBits = 0;
uint64_t read_control() { return 0; }
void write_control(uint64_t) {}
void relax() { std::this_thread::yield(); }
#endif

std::atomic<int> awake{0};
std::atomic<int64_t> made_room{0}, woken{0}, taken{0};

int processors() {
  static const int count = usable_processors();
  return count;
}

// Takes the calling thread off those that are awake if they are too many.
bool make_room() {
  int now = awake.load(std::memory_order_relaxed);
  while (now > processors()) {
    if (!awake.compare_exchange_weak(now, now - 1, std::memory_order_relaxed)) continue;
    made_room.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace

Pool::Census Pool::census() { return {awake.load(), made_room.load(), woken.load(), taken.load()}; }

ScopedFlushDenormals::ScopedFlushDenormals() : saved_(read_control()) {
  if ((saved_ & kFlushBits) != kFlushBits) write_control(saved_ | kFlushBits);
}

ScopedFlushDenormals::~ScopedFlushDenormals() {
  if ((saved_ & kFlushBits) != kFlushBits) write_control(saved_);
}

Pool::Pool(int threads, const std::vector<int>& affinity) {
  check_affinity(affinity);
  processors();  // counted before a thread is bound
  const auto bound = static_cast<int>(affinity.size());
  const int count = threads > 0 ? threads : bound > 0 ? bound : usable_cores();
  for (int i = 0; i < count; ++i) workers_.push_back(std::make_unique<Worker>());
  for (int i = 1; i < count; ++i) workers_[i]->thread = std::thread([this, i] { work_thread(i); });
  if (bound == 0) return;
  bind_thread(this_thread_handle(), affinity[0]);
  for (int i = 1; i < count; ++i) bind_thread(workers_[i]->thread.native_handle(), affinity[i % bound]);
}

Pool::~Pool() {
  end_step();
  stop_.store(true);
  wake_all();
  for (auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void Pool::wake_all() {
  wake_.fetch_add(1);
  wake_.notify_all();
}

// As many as there are processors beside those that are awake.
void Pool::wake_for_room() {
  const int parked = parked_.load();
  if (parked == 0) return;
  const int room = std::min(parked, processors() - awake.load(std::memory_order_relaxed));
  if (room <= 0) return;
  woken.fetch_add(room, std::memory_order_relaxed);
  wake_.fetch_add(1);
  for (int i = 0; i < room; ++i) wake_.notify_one();
}

void Pool::begin_step() {
  if (!step_open_.exchange(true, std::memory_order_relaxed)) awake.fetch_add(1, std::memory_order_relaxed);
  wake_for_room();
}

void Pool::end_step() {
  if (step_open_.exchange(false, std::memory_order_relaxed)) awake.fetch_sub(1, std::memory_order_relaxed);
}

void Pool::run_tasks(int64_t tasks, Task task, void* context) {
  if (tasks <= 0) return;
  const ScopedFlushDenormals flush;
  const int64_t count = workers();
  if (count == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
    return;
  }
  task_ = task;
  context_ = context;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    workers_[i]->next.store(begin, std::memory_order_relaxed);
    begin += tasks / count + (i < tasks % count ? 1 : 0);
    workers_[i]->end = begin;
  }
  const uint64_t job = job_.load(std::memory_order_relaxed) + 1;
  job_.store(job);
  wake_for_room();

  work(0);
  for (int64_t i = 1; i < count; ++i) {
    std::atomic<uint64_t>& claim = workers_[i]->claim;
    uint64_t state = claim.load(std::memory_order_acquire);
    if (state < 4 * job) claim.compare_exchange_strong(state, 4 * job + kClosed);
    while (claim.load(std::memory_order_acquire) == 4 * job + kJoined) relax();
  }
  if (failed_.load(std::memory_order_acquire)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Pool::work(int self) {
  const int count = workers();
  int64_t of_others = 0;
  for (int i = 0; i < count; ++i) {
    Worker& worker = *workers_[(self + i) % count];
    while (worker.next.load(std::memory_order_relaxed) < worker.end) {
      const int64_t index = worker.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= worker.end) break;
      if (i > 0) ++of_others;
      try {
        task_(context_, index, self);
      } catch (...) {
        const std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
        failed_.store(true, std::memory_order_release);
      }
    }
  }
  if (of_others > 0) taken.fetch_add(of_others, std::memory_order_relaxed);
}

uint64_t Pool::wait_for_job(uint64_t seen) {
  using Clock = std::chrono::steady_clock;
  for (;;) {
    const auto start = Clock::now();
    bool made = false;
    do {
      for (int i = 0; i < 64; ++i) {
        const uint64_t job = job_.load(std::memory_order_acquire);
        if (job != seen) return job;
        relax();
      }
      if (stop_.load(std::memory_order_relaxed)) return seen;
      made = make_room();
    } while (!made &&
             Clock::now() - start < (step_open_.load(std::memory_order_relaxed) ? kSpinInStep : kSpinAfterStep));
    if (!made) awake.fetch_sub(1, std::memory_order_relaxed);
    parked_.fetch_add(1);
    const uint32_t ticket = wake_.load();
    if (job_.load() == seen && !stop_.load()) wake_.wait(ticket);
    parked_.fetch_sub(1);
    awake.fetch_add(1, std::memory_order_relaxed);
  }
}

void Pool::work_thread(int self) {
  const ScopedFlushDenormals flush;
  Worker& worker = *workers_[self];
  uint64_t seen = 0;
  awake.fetch_add(1, std::memory_order_relaxed);
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint64_t job = wait_for_job(seen);
    if (job == seen) continue;
    seen = job;
    uint64_t state = worker.claim.load(std::memory_order_relaxed);
    if (state >= 4 * job || !worker.claim.compare_exchange_strong(state, 4 * job + kJoined)) continue;
    work(self);
    worker.claim.store(4 * job + kDone, std::memory_order_release);
  }
  awake.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace at_moe
