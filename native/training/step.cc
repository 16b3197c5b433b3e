#include "training/step.h"

#include <algorithm>

#include "core/rng.h"
#include "core/status.h"

namespace at_moe {

TrainingStep::TrainingStep(Trainer::State& state, const MicroBatch& batch, MicroBatchResult& result, bool backward)
    : state_(state),
      batch_(batch),
      result_(result),
      backward_(backward),
      model_(state.model),
      config_(state.model.config()),
      backend_(state.backend),
      tape_(state.tape_for(static_cast<int64_t>(batch.ids.size()), static_cast<int64_t>(batch.offsets.size()) - 1)),
      rows_(static_cast<int64_t>(batch.ids.size())) {
  result_ = {};
  for (size_t i = 0; i + 1 < batch_.offsets.size(); ++i) {
    sequences_.push_back({batch_.offsets[i], batch_.offsets[i + 1], batch_.offsets[i] + batch_.prompt_lengths[i]});
  }
  check();
  if (batch_.step_tokens > 0) share_ = static_cast<double>(rows_) / batch_.step_tokens;
}

void TrainingStep::check() const {
  for (const Sequence& sequence : sequences_) {
    require(sequence.end > sequence.begin, "a training sequence is empty");
    require(!pooled() || sequence.prompt_end > sequence.begin,
            "sequence scope needs instruction tokens in every example");
    if (sequence.end - sequence.begin > config_.max_position_embeddings) {
      fail(Code::kContextLength, "a training example of ", sequence.end - sequence.begin,
           " tokens exceeds the context of ", config_.max_position_embeddings);
    }
  }
  if (batch_.selection.empty()) return;
  require(routed() && !pooled(), "a selection is for a router of token scope");
  const RouterShape& shape = state_.mixture->shape();
  require(static_cast<int64_t>(batch_.selection.size()) == config_.num_layers * rows_ * (shape.groups + shape.experts),
          "the selection does not fit layers, rows, groups and experts");
}

void TrainingStep::upload_layout() {
  std::vector<int32_t> position(static_cast<size_t>(rows_)), owner(position.size());
  const int64_t stride = tape_.rows() / kPageTokens + 1;
  std::vector<int32_t> pages(sequences_.size() * static_cast<size_t>(stride));
  int32_t next = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const Sequence& sequence = sequences_[i];
    for (int64_t row = sequence.begin; row < sequence.end; ++row) {
      position[static_cast<size_t>(row)] = static_cast<int32_t>(row - sequence.begin);
      owner[static_cast<size_t>(row)] = static_cast<int32_t>(i);
    }
    const int64_t count = (sequence.end - sequence.begin + kPageTokens - 1) / kPageTokens;
    for (int64_t page = 0; page < count; ++page)
      pages[i * static_cast<size_t>(stride) + static_cast<size_t>(page)] = next++;
  }
  auto send = [&](const Buffer& buffer, const std::vector<int32_t>& values) {
    backend_.upload(buffer.as<void>(), values.data(), values.size() * sizeof(int32_t));
  };
  send(tape_.ids, batch_.ids);
  send(tape_.position, position);
  send(tape_.sequence, owner);
  send(tape_.pages, pages);
}

// The router's statistics run over router rows: tokens, or sequences counted by their tokens.
void TrainingStep::upload_targets() {
  const int32_t groups = state_.mixture->shape().groups, experts = state_.mixture->shape().experts;
  std::vector<float> weight, group_target, expert_target;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int64_t tokens = sequences_[i].end - sequences_[i].begin;
    const float share = static_cast<float>(pooled() ? tokens : 1) / static_cast<float>(rows_);
    for (int64_t repeat = 0; repeat < (pooled() ? 1 : tokens); ++repeat) {
      weight.push_back(share);
      auto take = [&](std::vector<float>& to, const std::vector<float>& from, int32_t width) {
        if (!from.empty())
          to.insert(to.end(), from.begin() + static_cast<int64_t>(i) * width,
                    from.begin() + static_cast<int64_t>(i + 1) * width);
      };
      take(group_target, batch_.group_target, groups);
      take(expert_target, batch_.expert_target, experts);
    }
  }
  auto send = [&](const Buffer& buffer, const std::vector<float>& values) {
    backend_.upload(buffer.as<void>(), values.data(), values.size() * sizeof(float));
  };
  send(tape_.row_weight, weight);
  send(tape_.group_target, group_target);
  send(tape_.expert_target, expert_target);
}

// An adapter alone: gate 1, or the example's draw from U(scale_min, 1).
void TrainingStep::upload_fixed_records() {
  const RouterShape& shape = state_.mixture->shape();
  const std::vector<float> record = state_.mixture->explicit_record(0, {1.0f}, true);
  std::vector<float> records;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    std::vector<float> own = record;
    const uint64_t index = static_cast<uint64_t>(state_.step_sequences) + i;
    const float draw = uniform(philox(state_.options.seed ^ 0x5ca1ab1eu, static_cast<uint64_t>(state_.step), index)[0]);
    if (backward_)
      own[static_cast<size_t>(shape.gate())] = state_.options.scale_min + (1 - state_.options.scale_min) * draw;
    for (int64_t row = sequences_[i].begin; row < sequences_[i].end; ++row)
      records.insert(records.end(), own.begin(), own.end());
  }
  for (int64_t slot = 0; slot < tape_.slots(); ++slot) {
    backend_.upload(tape_.records(slot, 0, rows_).data, records.data(), records.size() * sizeof(float));
  }
}

RaggedRows TrainingStep::layout(int64_t row, int64_t count) const {
  const RaggedRows all{rows_,
                       static_cast<int64_t>(sequences_.size()),
                       tape_.position.as<int32_t>(),
                       tape_.sequence.as<int32_t>(),
                       tape_.pages.as<int32_t>(),
                       tape_.rows() / kPageTokens + 1};
  return all.row_range(row, count);
}

AdapterDropout TrainingStep::dropout(int64_t row) const {
  AdapterDropout dropout;
  dropout.p = backward_ ? state_.options.dropout : 0;
  dropout.seed = state_.options.seed;
  dropout.step = static_cast<uint64_t>(state_.step);
  dropout.first_row = state_.step_rows + row;
  dropout.scratch = tape_.dropped;
  return dropout;
}

void TrainingStep::norm(int64_t layer, int64_t row, int64_t count, const Matrix& out) const {
  backend_.forward(RmsNormForward{tape_.input(layer, row, count), out, model_.layer(layer).input_norm.as<float>(),
                                  config_.hidden_size, config_.rms_norm_eps});
}

Pass TrainingStep::run() {
  upload_layout();
  if (routed()) upload_targets();
  co_await unit_end();
  if (state_.mixture && !routed()) upload_fixed_records();
  co_await unit_end();
  select_rows();
  co_await unit_end();
  const EmbeddingForward embed{model_.embedding(), model_.embedding_type(), tape_.ids.as<int32_t>(),
                               tape_.input(0, 0, rows_)};
  if (state_.options.base_kl > 0) {
    backend_.forward(embed);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) co_await forward_layer(layer, false);
    co_await base_reference();
  }
  backend_.forward(embed);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) co_await forward_layer(layer, true);
  co_await losses();
  if (!backward_ || result_.bad_sequence >= 0) co_return;
  co_await backward_layers();
}

Pass TrainingStep::forward_layer(int64_t layer, bool adapters) {
  if (adapters && pooled()) co_await pool_router(layer);
  for (int64_t row = 0; row < rows_; row += kTrainingRun) {
    forward_run(layer, row, run_rows(row), adapters);
    co_await unit_end();
  }
}

void TrainingStep::forward_run(int64_t layer, int64_t row, int64_t count, bool adapters) {
  LayerViews views = tape_.layer(layer, row, count);
  norm(layer, row, count, views.z);
  const MixtureRows own{0, count, adapters ? state_.mixture.get() : nullptr};
  if (own.mixture) views.records = tape_.records(layer, row, count);
  if (own.mixture && routed() && !pooled()) route_tokens(layer, row, count, views.z);
  const AdapterDropout drop = dropout(row);
  layer_forward(model_, {layer, std::span(&own, 1), tape_.kv.get(), 0, layout(row, count), &drop}, views);
}

void TrainingStep::route_tokens(int64_t layer, int64_t row, int64_t count, const Matrix& z) {
  const RouterLayer& router = state_.mixture->router(static_cast<int>(layer));
  const RouterLogits::Segment product{0, count, &router};
  const Matrix scores = tape_.scores(layer, row, count);
  backend_.forward(RouterLogits{z, scores, std::span(&product, 1)});
  RouterForward::Segment segment;
  segment.end = count;
  segment.shape = &state_.mixture->shape();
  segment.layer = &router;
  segment.options = state_.mixture->source().options;
  if (!batch_.selection.empty()) {
    const int64_t entries = segment.shape->groups + segment.shape->experts;
    segment.frozen_selection = batch_.selection.data() + (layer * rows_ + row) * entries;
  }
  backend_.forward(RouterForward{scores, tape_.records(layer, row, count), std::span(&segment, 1)});
}

Pass TrainingStep::pool_router(int64_t layer) {
  const RouterLayer& router = state_.mixture->router(static_cast<int>(layer));
  for (int64_t row = 0; row < rows_; row += kTrainingRun) {
    const int64_t count = run_rows(row);
    const Matrix z = tape_.z.row_range(0, count);
    norm(layer, row, count, z);
    const RouterLogits::Segment product{0, count, &router};
    backend_.forward(RouterLogits{z, tape_.scores(layer, row, count), std::span(&product, 1)});
    co_await unit_end();
  }
  std::vector<RouterForward::Segment> segments;
  std::vector<SumRows::Run> means;
  std::vector<SpreadRows::Run> spread;
  const Matrix records = tape_.pooled_records(layer), scores = tape_.scores(layer, 0, rows_),
               pooled = tape_.pooled_scores(layer);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    RouterForward::Segment segment;
    segment.begin = sequences_[i].begin;
    segment.end = sequences_[i].prompt_end;
    segment.out = static_cast<int64_t>(i);
    segment.pooled = true;
    segment.shape = &state_.mixture->shape();
    segment.layer = &router;
    segment.options = state_.mixture->source().options;
    segments.push_back(segment);
    means.push_back({segment.begin, segment.begin + 1, segment.out});
    spread.push_back({sequences_[i].begin, sequences_[i].end, records.row(segment.out), records.cols, 1.0f});
  }
  backend_.forward(RouterForward{scores, records, segments});
  backend_.zero(pooled.data, static_cast<size_t>(pooled.rows * pooled.cols) * sizeof(float));
  backend_.forward(SumRows{scores, pooled, means});
  backend_.forward(SpreadRows{tape_.records(layer, 0, rows_), spread, false});
}

}  // namespace at_moe
