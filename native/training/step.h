// One micro-batch in flight: forward over the layers, losses, backward. Every run of rows of a layer is a unit.
#pragma once

#include <utility>
#include <vector>

#include "training/state.h"

namespace at_moe {

class TrainingStep {
 public:
  TrainingStep(Trainer::State& state, const MicroBatch& batch, MicroBatchResult& result, bool backward);
  Pass run();

 private:
  struct Sequence {
    int64_t begin = 0, end = 0, prompt_end = 0;
  };

  // step.cc
  void check() const;
  void upload_layout();
  void upload_targets();
  void upload_fixed_records();
  bool pooled() const { return routed() && state_.mixture->source().scope == RoutingScope::kSequence; }
  bool routed() const { return state_.mixture && state_.mixture->has_router(); }
  int64_t run_rows(int64_t row) const { return std::min(kTrainingRun, rows_ - row); }
  RaggedRows layout(int64_t row, int64_t count) const;
  void norm(int64_t layer, int64_t row, int64_t count, const Matrix& out) const;
  Pass forward_layer(int64_t layer, bool adapters);
  void forward_run(int64_t layer, int64_t row, int64_t count, bool adapters);
  Pass pool_router(int64_t layer);
  void route_tokens(int64_t layer, int64_t row, int64_t count, const Matrix& z);
  AdapterDropout dropout(int64_t row) const;

  // loss.cc
  Pass losses();
  void select_rows();
  Pass base_reference();
  void loss_run(size_t first, size_t count);
  Matrix head_rows(const Matrix& hidden, const Matrix& normed, const Matrix& logits) const;
  void note_bad_row(int32_t row);

  // backward.cc
  Pass backward_layers();
  void mlp_backward(int64_t layer, int64_t row, int64_t count);
  void attention_backward(int64_t layer, const Sequence& sequence);
  void projections_backward(int64_t layer, int64_t row, int64_t count);
  void router_backward(int64_t layer);
  void input_backward(int64_t layer, int64_t row, int64_t count);
  void product_backward(int64_t layer, int group, int64_t row, int64_t count, const Matrix& x, const LayerViews& views,
                        std::span<const LinearModule> modules, const Matrix& dx);

  Trainer::State& state_;
  const MicroBatch& batch_;
  MicroBatchResult& result_;
  const bool backward_;
  const Model& model_;
  const ModelConfig& config_;
  Backend& backend_;
  Tape& tape_;
  int64_t rows_ = 0;
  double share_ = 1;      // of the optimiser step's tokens
  float loss_scale_ = 1;  // of the losses that are differentiated
  std::vector<Sequence> sequences_;
  // Rows with a loss, in ascending order, and their factors.
  std::vector<int32_t> loss_rows_, labels_;
  std::vector<float> loss_weight_, kl_weight_;
  Buffer loss_index_, loss_labels_, loss_weights_, kl_weights_, loss_values_, kl_values_;
  Buffer selected_, normed_, base_selected_, logits_, base_logits_;
  int64_t head_run_ = 0;
};

}  // namespace at_moe
