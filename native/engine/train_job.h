// The trainers of an engine, by number.
#pragma once

#include <map>
#include <memory>

#include "core/pass.h"
#include "engine/event.h"
#include "engine/residency.h"
#include "training/trainer.h"

namespace at_moe {

class Trainers {
 public:
  int64_t begin(Model& model, std::shared_ptr<Mixture> mixture, const TrainOptions& options, Residency::Hold pin);
  Pass micro_batch(int64_t trainer, MicroBatch batch, JobResult& result);
  Pass evaluate(int64_t trainer, MicroBatch batch, JobResult& result);
  Pass finish_step(int64_t trainer, float learning_rate, JobResult& result);
  Trainer& at(int64_t trainer) const { return *entry(trainer).trainer; }
  void end(int64_t trainer) { entries_.erase(trainer); }
  size_t device_bytes() const;

 private:
  struct Entry {
    Residency::Hold pin;
    std::unique_ptr<Trainer> trainer;
    int64_t vocab_size = 0, groups = 0, experts = 0;
    bool pooled = false;  // the router sees the mean of the instruction rows: there must be one
  };
  const Entry& entry(int64_t trainer) const;

  std::map<int64_t, Entry> entries_;
  int64_t last_ = 0;
};

}  // namespace at_moe
