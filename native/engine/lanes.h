// Jobs other than sequences. A lane runs its jobs one after the other; lanes take turns, one unit each.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>

#include "core/pass.h"
#include "engine/event.h"

namespace at_moe {

using JobBody = std::function<Pass(JobResult&)>;

class Lanes {
 public:
  explicit Lanes(EventSink& sink) : sink_(sink) {}

  void add(int64_t lane, int64_t job, JobBody body);
  // A job that runs or waits is rejected with kAborted. Others are ignored.
  void cancel(int64_t job);
  void reject_all(const Failure& failure);
  size_t size() const { return lanes_.size(); }
  // Runs one unit of the next lane.
  void step();

 private:
  struct Job {
    int64_t id = 0;
    JobBody body;
    JobResult result;
    Pass pass;
  };
  using Lane = std::deque<std::unique_ptr<Job>>;

  EventSink& sink_;
  std::map<int64_t, Lane> lanes_;
  int64_t last_ = -1;
};

}  // namespace at_moe
