#include "engine/lanes.h"

namespace at_moe {

void Lanes::add(int64_t lane, int64_t job, JobBody body) {
  auto entry = std::make_unique<Job>();
  entry->id = job;
  entry->body = std::move(body);
  lanes_[lane].push_back(std::move(entry));
}

void Lanes::cancel(int64_t job) {
  for (auto lane = lanes_.begin(); lane != lanes_.end(); ++lane) {
    for (auto entry = lane->second.begin(); entry != lane->second.end(); ++entry) {
      if ((*entry)->id != job) continue;
      lane->second.erase(entry);
      if (lane->second.empty()) lanes_.erase(lane);
      sink_.push(JobDone{job, Failure{Code::kAborted, "the job was aborted"}});
      return;
    }
  }
}

void Lanes::reject_all(const Failure& failure) {
  for (auto& [lane, jobs] : std::exchange(lanes_, {})) {
    for (auto& job : jobs) {
      job->pass = Pass();
      sink_.push(JobDone{job->id, failure});
    }
  }
}

void Lanes::step() {
  if (lanes_.empty()) return;
  auto lane = lanes_.upper_bound(last_);
  if (lane == lanes_.end()) lane = lanes_.begin();
  last_ = lane->first;
  Job& job = *lane->second.front();
  bool more = false;
  try {
    if (!job.pass) job.pass = job.body(job.result);
    more = job.pass.resume();
  } catch (...) {
    job.result = failure_of(std::current_exception());
  }
  if (more) return;
  // The pass ends before its result is told: what it holds is free by then.
  std::unique_ptr<Job> ended = std::move(lane->second.front());
  lane->second.pop_front();
  if (lane->second.empty()) lanes_.erase(lane);
  ended->pass = Pass();
  sink_.push(JobDone{ended->id, std::move(ended->result)});
}

}  // namespace at_moe
