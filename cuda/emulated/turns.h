// The random choices of a schedule, and which of the blocks in flight runs.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <vector>

namespace at_moe::cuda::simt {

class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435769u + 1) {}
  uint32_t below(uint32_t n) {
    state_ = state_ * 1664525u + 1013904223u;
    return (state_ >> 8) % n;
  }

 private:
  uint32_t state_;
};

// Of the blocks in flight one runs at a time: the holder of the turn.
class Turns {
 public:
  Turns(int count, uint32_t seed)
      : random_(seed), waiting_(static_cast<size_t>(count)), has_turn_(static_cast<size_t>(count)) {
    std::iota(waiting_.begin(), waiting_.end(), 0);
  }

  void begin(int me) {
    std::unique_lock lock(mutex_);
    if (++begun_ == static_cast<int>(waiting_.size())) pick();
    await(lock, me);
  }
  void pass(int me, uint32_t odds) {
    std::unique_lock lock(mutex_);
    if (random_.below(odds) != 0) return;
    pick();
    await(lock, me);
  }
  void end(int me) {
    const std::lock_guard lock(mutex_);
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), me));
    pick();
  }

 private:
  void pick() {
    turn_ = waiting_.empty() ? -1 : waiting_[random_.below(static_cast<uint32_t>(waiting_.size()))];
    if (turn_ >= 0) has_turn_[static_cast<size_t>(turn_)].notify_one();
  }
  void await(std::unique_lock<std::mutex>& lock, int me) {
    has_turn_[static_cast<size_t>(me)].wait(lock, [&] { return turn_ == me; });
  }

  std::mutex mutex_;
  Random random_;
  std::vector<int> waiting_;
  std::vector<std::condition_variable> has_turn_;
  int turn_ = -1, begun_ = 0;
};

}  // namespace at_moe::cuda::simt
