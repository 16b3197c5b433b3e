// What lives on the engine's thread, and the jobs on it. Only that thread touches it.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "backend/backend.h"
#include "engine/constraints.h"
#include "engine/lanes.h"
#include "engine/requests.h"
#include "engine/residency.h"
#include "engine/scheduler.h"
#include "engine/train_job.h"
#include "mixture/mixture.h"
#include "model/model.h"

namespace at_moe {

inline constexpr int64_t kCommonLane = 0;  // trainers have lanes of their own, by their numbers

class Worker {
 public:
  // `wake` is called on another thread when there is something to do.
  Worker(const EngineOptions& options, EventSink& sink, std::function<void()> wake);
  ~Worker();

  // Bodies of jobs.
  Pass load(int64_t job, LoadRequest request, JobResult& result);
  Pass create_mixture(MixtureSource source, int64_t replaced, JobResult& result);
  Pass pin_mixture(int64_t mixture, JobResult& result);
  Pass read_mixture(int64_t mixture, std::string prefix, JobResult& result);
  Pass begin_training(int64_t mixture, TrainOptions options, JobResult& result);  // mixture 0: the base
  Pass load_vocabulary(std::shared_ptr<Vocabulary> vocabulary, JobResult& result);
  Pass merged(MergeRequest request, JobResult& result);
  Pass quantize(TensorSource source, JobResult& result);  // needs no model
  Pass packed_sections(JobResult& result);
  Pass packed_section(std::string name, JobResult& result);
  Pass memory(JobResult& result);
  Pass logits(ScoreRequest request, JobResult& result);
  Pass bench(BenchRequest request, JobResult& result);
  Pass probe(JobResult& result);
  Pass copy_files(std::vector<std::string> files, JobResult& result);

  // Effects without a result.
  void generate(const std::vector<GenerateRequest>& requests);
  void score(ScoreRequest request);
  void cancel_sequence(int64_t sequence);
  void read_tokens(int64_t sequence, int64_t tokens);
  void cancel_job(int64_t job);
  void unpin_mixture(int64_t mixture) { pins_.erase(mixture); }
  void release_mixture(int64_t mixture);
  void release_session(int64_t session);
  Constraints& constraints() { return constraints_; }

  EngineStats stats() const;

  Lanes& lanes() { return lanes_; }
  Trainers& trainers() { return trainers_; }

  bool idle() const;
  Scheduling::Clock::time_point next_deadline() const;
  // One step of the scheduler, one unit of another job.
  void step();
  // Before the thread sleeps.
  void rest();
  void reject_all(const Failure& failure);

 private:
  Scheduler& scheduler() const;
  int rest_for_probe();  // returns its threads
  void begin(const GenerateRequest& request);
  std::shared_ptr<Mixture> mixture(int64_t number) const;
  std::shared_ptr<SequenceRouting> routing(const RoutingRequest& request) const;
  Pass hold(const RoutingRequest& request, Residency::Hold& hold);

  EngineOptions options_;
  EventSink& sink_;
  std::function<void()> wake_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> merge_backend_;  // where the device does not compute in f32
  std::unique_ptr<Model> model_;
  std::unique_ptr<Residency> residency_;
  std::map<int64_t, std::shared_ptr<Mixture>> mixtures_;
  std::map<int64_t, Residency::Hold> pins_;  // by the mixture's number
  int64_t last_mixture_ = 0;
  std::optional<Storage> expert_weights_;  // of all mixtures, if it was given
  std::unique_ptr<Scheduler> scheduler_;
  Constraints constraints_;
  Trainers trainers_;
  Lanes lanes_;
  bool working_ = false;
};

}  // namespace at_moe
