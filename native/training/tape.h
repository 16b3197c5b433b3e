// What a micro-batch of N rows keeps between forward and backward, and its scratch.
#pragma once

#include <array>
#include <vector>

#include "model/layer.h"

namespace at_moe {

// Rows of one run: gradients of weights are summed run by run, so it never depends on anything else.
inline constexpr int64_t kTrainingRun = kGradientRun;

class Tape {
 public:
  // `slots`: layers whose activations are kept: all of them, or 1 when they are computed again.
  Tape(const Model& model, const Mixture* mixture, int64_t slots, int64_t rows, int64_t sequences);

  int64_t rows() const { return rows_; }
  int64_t sequences() const { return sequences_; }
  int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
  size_t bytes() const { return bytes_; }

  // Views of the rows [row, row + count) of a layer; records are left to the caller.
  LayerViews layer(int64_t index, int64_t row, int64_t count);
  Matrix input(int64_t index, int64_t row, int64_t count);  // hidden before layer `index`, f32; index L: after the last
  Matrix records(int64_t layer, int64_t row, int64_t count);
  Matrix scores(int64_t layer, int64_t row, int64_t count);  // router logits of rows
  Matrix pooled_records(int64_t layer);                      // [B, width]
  Matrix pooled_scores(int64_t layer);                       // [B, G+E]
  std::array<Matrix, kLinearGroups> gated(int64_t layer, int64_t row, int64_t count, bool raw);

  // Scratch of the whole micro-batch; d_hidden and d_z f32.
  Matrix d_hidden, d_attention, d_q, d_k, d_v, d_z, d_records, d_scores, d_pooled_records, d_pooled_scores;
  // Scratch of one run; d_dropped, q_in and k_in f32.
  Matrix q_in, k_in, z, z2, act, d_act, dh, dropped, d_dropped;
  // Layout and targets.
  Buffer ids, position, sequence, pages, row_weight, group_target, expert_target;
  std::unique_ptr<KvPool> kv;  // one layer: each layer writes over the one before

 private:
  struct Slot {
    Buffer q_raw, k_raw, q, k, v, attention, lse, mid, gate, up;
    std::array<Buffer, kLinearGroups> h, hg;
    Buffer records, scores, pooled_records, pooled_scores;
  };
  Buffer floats(int64_t count);
  Buffer activations(int64_t rows, int64_t cols);
  Matrix owned(int64_t rows, int64_t cols, DType type);
  Matrix view(const Buffer& buffer, int64_t cols, int64_t row, int64_t count, DType type) const;
  Slot& slot(int64_t layer) { return slots_[static_cast<size_t>(slots() == 1 ? 0 : layer)]; }

  Backend& backend_;
  const ModelConfig& config_;
  const Mixture* mixture_;
  int64_t rows_, sequences_, queries_, keys_, width_ = 0, score_columns_ = 0;
  std::vector<Slot> slots_;
  std::vector<Buffer> inputs_, scratch_;
  size_t bytes_ = 0;
};

}  // namespace at_moe
