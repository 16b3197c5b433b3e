#include "engine/train_job.h"

#include <utility>

#include "core/status.h"

namespace at_moe {

namespace {

// Half of a micro-batch's gradients is worth nothing: drops them unless the pass came to its end.
class DiscardUnlessDone {
 public:
  explicit DiscardUnlessDone(Trainer& trainer) : trainer_(&trainer) {}
  DiscardUnlessDone(const DiscardUnlessDone&) = delete;
  ~DiscardUnlessDone() {
    if (trainer_) trainer_->discard_gradients();
  }
  void done() { trainer_ = nullptr; }

 private:
  Trainer* trainer_;
};

void check(const MicroBatch& batch, int64_t vocab_size, int64_t groups, int64_t experts, bool pooled) {
  const size_t rows = batch.ids.size(), sequences = batch.prompt_lengths.size();
  auto fits = [](bool condition, const char* what) {
    if (!condition) fail(Code::kMismatch, "micro-batch: ", what);
  };
  fits(rows > 0 && sequences > 0, "it is empty");
  fits(batch.labels.size() == rows, "labels do not fit ids");
  fits(batch.loss_weights.empty() || batch.loss_weights.size() == rows, "loss weights do not fit ids");
  fits(batch.kl_mask.empty() || batch.kl_mask.size() == rows, "the KL mask does not fit ids");
  fits(batch.offsets.size() == sequences + 1, "offsets do not fit prompt lengths");
  fits(batch.offsets.front() == 0 && batch.offsets.back() == static_cast<int64_t>(rows), "offsets do not cover ids");
  for (size_t i = 0; i < sequences; ++i) {
    const int64_t length = int64_t{batch.offsets[i + 1]} - batch.offsets[i];
    fits(length > 0, "a sequence is empty");
    fits(batch.prompt_lengths[i] >= pooled && batch.prompt_lengths[i] <= length,
         "a prompt is empty or longer than its sequence");
  }
  for (size_t row = 0; row < rows; ++row) {
    fits(batch.ids[row] >= 0 && batch.ids[row] < vocab_size, "an id is not in the vocabulary");
    fits(batch.labels[row] == -100 || (batch.labels[row] >= 0 && batch.labels[row] < vocab_size),
         "a label is not in the vocabulary");
  }
  auto target = [&](const std::vector<float>& values, int64_t width, const char* what) {
    fits(values.empty() || values.size() == sequences * static_cast<size_t>(width), what);
  };
  target(batch.group_target, groups, "group targets do not fit the groups");
  target(batch.expert_target, experts, "expert targets do not fit the experts");
  fits(batch.example_ids.empty() || batch.example_ids.size() == sequences, "example ids do not fit the sequences");
}

}  // namespace

int64_t Trainers::begin(Model& model, std::shared_ptr<Mixture> mixture, const TrainOptions& options,
                        Residency::Hold pin) {
  Entry entry;
  entry.pin = std::move(pin);
  entry.vocab_size = model.config().vocab_size;
  if (mixture) {
    entry.groups = mixture->shape().groups;
    entry.experts = mixture->shape().experts;
    entry.pooled = mixture->has_router() && mixture->source().scope == RoutingScope::kSequence;
  }
  entry.trainer = std::make_unique<Trainer>(model, std::move(mixture), options);
  entries_[++last_] = std::move(entry);
  return last_;
}

const Trainers::Entry& Trainers::entry(int64_t trainer) const {
  const auto at = entries_.find(trainer);
  if (at == entries_.end()) fail(Code::kDisposed, "the training has ended");
  return at->second;
}

Pass Trainers::micro_batch(int64_t trainer, MicroBatch batch, JobResult& result) {
  const Entry& of = entry(trainer);
  check(batch, of.vocab_size, of.groups, of.experts, of.pooled);
  MicroBatchResult values;
  DiscardUnlessDone guard(*of.trainer);
  co_await of.trainer->micro_batch(batch, values);
  guard.done();
  result = values;
}

Pass Trainers::evaluate(int64_t trainer, MicroBatch batch, JobResult& result) {
  const Entry& of = entry(trainer);
  check(batch, of.vocab_size, of.groups, of.experts, of.pooled);
  MicroBatchResult values;
  co_await of.trainer->evaluate(batch, values);
  result = values;
}

Pass Trainers::finish_step(int64_t trainer, float learning_rate, JobResult& result) {
  StepResult values;
  co_await at(trainer).finish_step(learning_rate, values);
  result = values;
}

size_t Trainers::device_bytes() const {
  size_t bytes = 0;
  for (const auto& [number, entry] : entries_) bytes += entry.trainer->device_bytes();
  return bytes;
}

}  // namespace at_moe
