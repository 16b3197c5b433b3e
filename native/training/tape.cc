#include "training/tape.h"

#include <algorithm>

namespace at_moe {

Buffer Tape::floats(int64_t count) {
  Buffer buffer = backend_.allocate(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float));
  bytes_ += buffer.bytes();
  return buffer;
}

Buffer Tape::activations(int64_t rows, int64_t cols) {
  Buffer buffer = backend_.allocate(static_cast<size_t>(rows * cols) * size_of(backend_.activation_type()));
  bytes_ += buffer.bytes();
  return buffer;
}

Matrix Tape::owned(int64_t rows, int64_t cols, DType type) {
  scratch_.push_back(type == DType::f32 ? floats(rows * cols) : activations(rows, cols));
  return matrix(scratch_.back().as<void>(), rows, cols, type);
}

Matrix Tape::view(const Buffer& buffer, int64_t cols, int64_t row, int64_t count, DType type) const {
  return matrix(buffer.as<void>(), rows_, cols, type).row_range(row, count);
}

Tape::Tape(const Model& model, const Mixture* mixture, int64_t slots, int64_t rows, int64_t sequences)
    : backend_(model.backend()),
      config_(model.config()),
      mixture_(mixture),
      rows_(rows),
      sequences_(sequences),
      queries_(config_.num_heads * config_.head_dim),
      keys_(config_.num_kv_heads * config_.head_dim),
      slots_(static_cast<size_t>(slots)) {
  const DType type = backend_.activation_type();
  const int64_t hidden = config_.hidden_size, wide = config_.intermediate_size, run = std::min(kTrainingRun, rows);
  if (mixture_) width_ = mixture_->shape().width();
  if (mixture_ && mixture_->has_router()) score_columns_ = mixture_->shape().groups + mixture_->shape().experts;

  for (int64_t layer = 0; layer <= config_.num_layers; ++layer) inputs_.push_back(floats(rows * hidden));
  for (int64_t index = 0; index < slots; ++index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (config_.qk_norm) slot.q_raw = floats(rows * queries_);
    if (config_.qk_norm) slot.k_raw = floats(rows * keys_);
    slot.q = activations(rows, queries_);
    slot.k = activations(rows, keys_);
    slot.v = activations(rows, keys_);
    slot.attention = activations(rows, queries_);
    slot.lse = floats(rows * config_.num_heads);
    slot.mid = floats(rows * hidden);
    slot.gate = activations(rows, wide);
    slot.up = activations(rows, wide);
    for (int group = 0; mixture_ && group < kLinearGroups; ++group) {
      int64_t columns = mixture_->stack_columns(static_cast<int>(index), group);
      for (int64_t layer = 0; slots == 1 && layer < config_.num_layers; ++layer) {
        columns = std::max(columns, mixture_->stack_columns(static_cast<int>(layer), group));
      }
      slot.h[static_cast<size_t>(group)] = floats(rows * columns);
      slot.hg[static_cast<size_t>(group)] = floats(rows * columns);
    }
    if (width_) slot.records = floats(rows * width_);
    if (!score_columns_) continue;
    slot.scores = floats(rows * score_columns_);
    slot.pooled_records = floats(sequences * width_);
    slot.pooled_scores = floats(sequences * score_columns_);
  }
  d_hidden = owned(rows, hidden, DType::f32);
  d_attention = owned(rows, queries_, type);
  d_q = owned(rows, queries_, type);
  d_k = owned(rows, keys_, type);
  d_v = owned(rows, keys_, type);
  d_z = owned(rows, hidden, DType::f32);
  if (type != DType::f32) q_in = owned(run, queries_, DType::f32);
  if (type != DType::f32) k_in = owned(run, keys_, DType::f32);
  z = owned(run, hidden, type);
  z2 = owned(run, hidden, type);
  act = owned(run, wide, type);
  d_act = owned(run, wide, type);
  if (mixture_) {
    const int64_t widest = std::max({hidden, wide, queries_});
    dh = owned(run, std::max<int64_t>(mixture_->max_stack_columns(), 1), DType::f32);
    dropped = owned(run, widest, type);
    d_dropped = owned(run, widest, DType::f32);
    d_records = owned(rows, width_, DType::f32);
  }
  if (score_columns_) {
    d_scores = owned(rows, score_columns_, DType::f32);
    d_pooled_records = owned(sequences, width_, DType::f32);
    d_pooled_scores = owned(sequences, score_columns_, DType::f32);
    group_target = floats(rows * mixture_->shape().groups);
    expert_target = floats(rows * mixture_->shape().experts);
  }
  row_weight = floats(rows);
  ids = floats(rows);
  position = floats(rows);
  sequence = floats(rows);
  const int64_t most_pages = rows / kPageTokens + sequences;
  pages = floats(sequences * (rows / kPageTokens + 1));
  kv = backend_.create_kv({1, most_pages, config_.num_kv_heads, config_.head_dim});
  backend_.reserve({rows, sequences, rows, std::max(hidden, wide)});
}

Matrix Tape::input(int64_t index, int64_t row, int64_t count) {
  return view(inputs_[static_cast<size_t>(index)], config_.hidden_size, row, count, DType::f32);
}

Matrix Tape::records(int64_t layer, int64_t row, int64_t count) {
  return view(slot(layer).records, width_, row, count, DType::f32);
}

Matrix Tape::scores(int64_t layer, int64_t row, int64_t count) {
  return view(slot(layer).scores, score_columns_, row, count, DType::f32);
}

Matrix Tape::pooled_records(int64_t layer) { return matrix(slot(layer).pooled_records.as<void>(), sequences_, width_); }

Matrix Tape::pooled_scores(int64_t layer) {
  return matrix(slot(layer).pooled_scores.as<void>(), sequences_, score_columns_);
}

std::array<Matrix, kLinearGroups> Tape::gated(int64_t layer, int64_t row, int64_t count, bool raw) {
  std::array<Matrix, kLinearGroups> views;
  for (size_t group = 0; mixture_ && group < kLinearGroups; ++group) {
    const int64_t columns = mixture_->stack_columns(static_cast<int>(layer), static_cast<int>(group));
    const Buffer& buffer = raw ? slot(layer).h[group] : slot(layer).hg[group];
    if (columns) views[group] = matrix(buffer.as<void>(), rows_, columns).row_range(row, count);
  }
  return views;
}

LayerViews Tape::layer(int64_t index, int64_t row, int64_t count) {
  Slot& kept = slot(index);
  auto activations = [&](const Buffer& buffer, int64_t cols) {
    return view(buffer, cols, row, count, backend_.activation_type());
  };
  LayerViews views;
  views.in = input(index, row, count);
  views.z = z.row_range(0, count);
  views.q = activations(kept.q, queries_);
  views.k = activations(kept.k, keys_);
  views.q_in = q_in ? q_in.row_range(0, count) : views.q;
  views.k_in = k_in ? k_in.row_range(0, count) : views.k;
  views.q_raw = config_.qk_norm ? view(kept.q_raw, queries_, row, count, DType::f32) : views.q_in;
  views.k_raw = config_.qk_norm ? view(kept.k_raw, keys_, row, count, DType::f32) : views.k_in;
  views.v = activations(kept.v, keys_);
  views.attention = activations(kept.attention, queries_);
  views.lse = view(kept.lse, config_.num_heads, row, count, DType::f32);
  views.mid = view(kept.mid, config_.hidden_size, row, count, DType::f32);
  views.z2 = z2.row_range(0, count);
  views.gate = activations(kept.gate, config_.intermediate_size);
  views.up = activations(kept.up, config_.intermediate_size);
  views.act = act.row_range(0, count);
  views.out = input(index + 1, row, count);
  views.h = gated(index, row, count, true);
  views.hg = gated(index, row, count, false);
  return views;
}

}  // namespace at_moe
