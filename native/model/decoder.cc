#include "model/decoder.h"

#include <algorithm>
#include <numeric>

#include "core/status.h"
#include "model/layer.h"
#include "model/workspace.h"

namespace at_moe {

namespace {

using Mode = SequenceRouting::Mode;

// One pass in flight: where the rows of each sequence lie, and views of the workspace.
class InferencePass {
 public:
  InferencePass(const Model& model, Workspace& workspace, KvPool& kv, std::span<SequenceRows> sequences)
      : model_(model),
        config_(model.config()),
        backend_(model.backend()),
        buffers_(workspace.buffers()),
        kv_(kv),
        sequences_(sequences) {
    int64_t columns = 0, width = 0, scores = 0;
    for (const SequenceRows& sequence : sequences_) {
      begin_.push_back(rows_);
      rows_ += static_cast<int64_t>(sequence.ids.size());
      const Mixture* mixture = sequence.routing->mixture.get();
      if (!mixture) continue;
      columns = std::max(columns, mixture->max_stack_columns());
      width = std::max<int64_t>(width, mixture->shape().width());
      scores = std::max<int64_t>(scores, mixture->shape().groups + mixture->shape().experts);
    }
    begin_.push_back(rows_);
    require(rows_ <= buffers_.rows && static_cast<int64_t>(sequences_.size()) <= buffers_.sequences,
            "the pass does not fit its workspace");
    buffers_.fit(columns, width, scores);
    upload_layout();
    backend_.forward(
        EmbeddingForward{model_.embedding(), model_.embedding_type(), buffers_.ids.as<int32_t>(), hidden(0, rows_)});
    for (SequenceRows& sequence : sequences_) start_trace(sequence);
  }

  Pass layers() {
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      co_await pool(layer);
      for (int64_t row = 0; row < rows_; row += buffers_.chunk) {
        run_layer(layer, row, std::min(buffers_.chunk, rows_ - row));
        co_await unit_end();
      }
    }
    for (SequenceRows& sequence : sequences_) {
      if (sequence.routing->mode == Mode::kPool) sequence.routing->mode = Mode::kFixed;
    }
  }

  Matrix last_logits() {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < sequences_.size(); ++i) rows.push_back(static_cast<int32_t>(begin_[i + 1] - 1));
    return head_of(rows);
  }

  // Log-probabilities of the labels, in runs of rows small enough for one block of logits.
  Pass score() {
    const int64_t run = head_run();
    for (size_t i = 0; i < sequences_.size(); ++i) {
      SequenceRows& sequence = sequences_[i];
      if (sequence.labels.empty()) continue;
      sequence.scores.assign(sequence.ids.size(), 0);
      std::vector<int32_t> rows;
      for (size_t row = 0; row < sequence.labels.size(); ++row) {
        if (sequence.labels[row] >= 0) rows.push_back(static_cast<int32_t>(row));
      }
      for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(run)) {
        score_run(sequence, begin_[i],
                  std::span(rows).subspan(at, std::min(static_cast<size_t>(run), rows.size() - at)));
        co_await unit_end();
      }
    }
  }

  // Logits of all rows of the sequences that ask for them.
  Pass all_logits() {
    const int64_t run = head_run();
    for (size_t i = 0; i < sequences_.size(); ++i) {
      if (!sequences_[i].logits) continue;
      std::vector<float>& out = *sequences_[i].logits;
      out.resize(static_cast<size_t>((begin_[i + 1] - begin_[i]) * config_.vocab_size));
      for (int64_t row = begin_[i]; row < begin_[i + 1]; row += run) {
        std::vector<int32_t> rows(static_cast<size_t>(std::min(run, begin_[i + 1] - row)));
        std::iota(rows.begin(), rows.end(), static_cast<int32_t>(row));
        const Matrix logits = head_of(rows);
        backend_.download(out.data() + (row - begin_[i]) * config_.vocab_size, logits.data,
                          rows.size() * static_cast<size_t>(config_.vocab_size) * sizeof(float));
        co_await unit_end();
      }
    }
  }

 private:
  Matrix view(const Buffer& buffer, int64_t rows, int64_t cols) const {
    return matrix(buffer.as<void>(), rows, cols, buffers_.type);
  }
  Matrix floats(const Buffer& buffer, int64_t rows, int64_t cols) const {
    return matrix(buffer.as<void>(), rows, cols);
  }
  Matrix hidden(int64_t row, int64_t count) const {
    return floats(buffers_.hidden, buffers_.rows, config_.hidden_size).row_range(row, count);
  }
  Matrix scores(int64_t row, int64_t count) const {
    return floats(buffers_.scores, buffers_.rows, buffers_.score_columns).row_range(row, count);
  }
  Matrix records(int64_t count) const { return floats(buffers_.records, count, buffers_.width); }

  void upload_layout() {
    std::vector<int32_t> ids, positions, owners;
    std::vector<int32_t> pages(sequences_.size() * static_cast<size_t>(buffers_.pages_per_sequence));
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const SequenceRows& sequence = sequences_[i];
      for (size_t row = 0; row < sequence.ids.size(); ++row) {
        ids.push_back(sequence.ids[row]);
        positions.push_back(static_cast<int32_t>(sequence.position + static_cast<int64_t>(row)));
        owners.push_back(static_cast<int32_t>(i));
      }
      require(static_cast<int64_t>(sequence.pages.size()) <= buffers_.pages_per_sequence,
              "too many pages for the workspace");
      std::copy(sequence.pages.begin(), sequence.pages.end(),
                pages.begin() + static_cast<int64_t>(i) * buffers_.pages_per_sequence);
    }
    auto send = [&](const Buffer& buffer, const std::vector<int32_t>& values) {
      backend_.upload(buffer.as<void>(), values.data(), values.size() * sizeof(int32_t));
    };
    send(buffers_.ids, ids);
    send(buffers_.position, positions);
    send(buffers_.sequence, owners);
    send(buffers_.pages, pages);
  }

  RaggedRows layout(int64_t row, int64_t count) const {
    RaggedRows all{rows_,
                   static_cast<int64_t>(sequences_.size()),
                   buffers_.position.as<int32_t>(),
                   buffers_.sequence.as<int32_t>(),
                   buffers_.pages.as<int32_t>(),
                   buffers_.pages_per_sequence};
    return all.row_range(row, count);
  }

  // Calls f(sequence, first, end) for the sequences with rows in [row, row + count); first and end are relative to row.
  template <typename F>
  void overlapping(int64_t row, int64_t count, F&& f) const {
    const auto after = std::upper_bound(begin_.begin(), begin_.end(), row);
    for (size_t i = static_cast<size_t>(after - begin_.begin()) - 1; i < sequences_.size() && begin_[i] < row + count;
         ++i) {
      f(sequences_[i], std::max<int64_t>(begin_[i] - row, 0), std::min(begin_[i + 1] - row, count));
    }
  }

  void norm(const Buffer& gamma, int64_t row, int64_t count, const Matrix& out) const {
    backend_.forward(
        RmsNormForward{hidden(row, count), out, gamma.as<float>(), config_.hidden_size, config_.rms_norm_eps});
  }

  // Sequence scope: the layer's router sees all instruction rows before the layer's products run.
  Pass pool(int64_t layer) {
    const bool any = std::any_of(sequences_.begin(), sequences_.end(),
                                 [](const SequenceRows& s) { return s.routing->mode == Mode::kPool; });
    if (!any) co_return;
    for (int64_t row = 0; row < rows_; row += buffers_.chunk) {
      const int64_t count = std::min(buffers_.chunk, rows_ - row);
      std::vector<RouterLogits::Segment> segments;
      overlapping(row, count, [&](SequenceRows& sequence, int64_t first, int64_t end) {
        if (sequence.routing->mode == Mode::kPool)
          segments.push_back({first, end, &sequence.routing->mixture->router(static_cast<int>(layer))});
      });
      if (segments.empty()) continue;
      const Matrix z = view(buffers_.z, count, config_.hidden_size);
      norm(model_.layer(layer).input_norm, row, count, z);
      backend_.forward(RouterLogits{z, scores(row, count), segments});
      co_await unit_end();
    }
    for (size_t i = 0; i < sequences_.size(); ++i) {
      SequenceRouting& routing = *sequences_[i].routing;
      if (routing.mode != Mode::kPool) continue;
      RouterForward::Segment segment = router_segment(routing, layer);
      segment.begin = begin_[i];
      segment.end = begin_[i] + routing.instruction_rows;
      segment.out = layer;
      segment.pooled = true;
      const Matrix out = floats(routing.records, config_.num_layers, routing.mixture->shape().width());
      backend_.forward(RouterForward{scores(0, rows_), out, std::span(&segment, 1)});
    }
  }

  static RouterForward::Segment router_segment(const SequenceRouting& routing, int64_t layer) {
    RouterForward::Segment segment;
    segment.shape = &routing.mixture->shape();
    segment.layer = &routing.mixture->router(static_cast<int>(layer));
    segment.options = routing.options;
    segment.controls = &routing.controls;
    return segment;
  }

  // The kept entries from row `row` of the pass on, or null where nothing is prescribed.
  const uint8_t* selection_of(const SequenceRows& sequence, int64_t layer, int64_t row) const {
    const SequenceRouting& routing = *sequence.routing;
    if (routing.selection.empty()) return nullptr;
    const int64_t entries = routing.mixture->shape().groups + routing.mixture->shape().experts;
    const int64_t rows = static_cast<int64_t>(routing.selection.size()) / (config_.num_layers * entries);
    const int64_t position = sequence.position + row - begin_[static_cast<size_t>(&sequence - sequences_.data())];
    require(sequence.position + static_cast<int64_t>(sequence.ids.size()) <= rows, "a selection of too few rows");
    return routing.selection.data() + (layer * rows + position) * entries;
  }

  // The routing records of a run's rows.
  void gates(int64_t layer, int64_t row, int64_t count, const Matrix& z) {
    std::vector<RouterLogits::Segment> products;
    std::vector<RouterForward::Segment> routers;
    std::vector<SpreadRows::Run> spread;
    overlapping(row, count, [&](SequenceRows& sequence, int64_t first, int64_t end) {
      const SequenceRouting& routing = *sequence.routing;
      if (routing.mode == Mode::kBase) return;
      if (routing.mode == Mode::kToken) {
        RouterForward::Segment segment = router_segment(routing, layer);
        segment.begin = segment.out = first;
        segment.end = end;
        segment.frozen_selection = selection_of(sequence, layer, row + first);
        products.push_back({first, end, segment.layer});
        routers.push_back(segment);
        return;
      }
      const int64_t width = routing.mixture->shape().width();
      spread.push_back({first, end, routing.records.as<float>() + layer * width, width, 1.0f});
    });
    if (!spread.empty()) backend_.forward(SpreadRows{records(count), spread, false});
    if (products.empty()) return;
    backend_.forward(RouterLogits{z, scores(row, count), products});
    backend_.forward(RouterForward{scores(row, count), records(count), routers});
  }

  void run_layer(int64_t index, int64_t row, int64_t count) {
    const int64_t queries = config_.num_heads * config_.head_dim, keys = config_.num_kv_heads * config_.head_dim;
    LayerViews views;
    views.in = views.mid = views.out = hidden(row, count);
    views.z = views.z2 = view(buffers_.z, count, config_.hidden_size);
    views.q = view(buffers_.q, count, queries);
    views.k = view(buffers_.k, count, keys);
    views.q_raw = views.q_in = buffers_.q_in ? floats(buffers_.q_in, count, queries) : views.q;
    views.k_raw = views.k_in = buffers_.k_in ? floats(buffers_.k_in, count, keys) : views.k;
    views.v = view(buffers_.v, count, keys);
    views.attention = view(buffers_.attention, count, queries);
    views.gate = views.act = view(buffers_.gate, count, config_.intermediate_size);
    views.up = view(buffers_.up, count, config_.intermediate_size);
    if (buffers_.width) views.records = records(count);
    if (buffers_.columns) views.hg.fill(floats(buffers_.gated, count, buffers_.columns));
    norm(model_.layer(index).input_norm, row, count, views.z);
    gates(index, row, count, views.z);
    trace(index, row, count);
    std::vector<MixtureRows> mixtures;
    overlapping(row, count, [&](SequenceRows& sequence, int64_t first, int64_t end) {
      mixtures.push_back({first, end, sequence.routing->mixture.get()});
    });
    layer_forward(model_, {index, mixtures, &kv_, index, layout(row, count), nullptr}, views);
  }

  // Rows whose logits the workspace holds at once.
  int64_t head_run() const {
    const int64_t most = static_cast<int64_t>(buffers_.logits.bytes() / sizeof(float)) / config_.vocab_size;
    return std::min(buffers_.chunk, most);
  }

  Matrix head_of(const std::vector<int32_t>& rows) const {
    const int64_t count = static_cast<int64_t>(rows.size());
    backend_.upload(buffers_.last_rows.as<void>(), rows.data(), rows.size() * sizeof(int32_t));
    const Matrix last = floats(buffers_.last, count, config_.hidden_size);
    const Matrix normed = view(buffers_.normed, count, config_.hidden_size);
    backend_.forward(EmbeddingForward{buffers_.hidden.as<void>(), DType::f32, buffers_.last_rows.as<int32_t>(), last});
    backend_.forward(RmsNormForward{last, normed, model_.final_norm(), config_.hidden_size, config_.rms_norm_eps});
    const Matrix logits = floats(buffers_.logits, count, config_.vocab_size);
    const LinearModule head{&model_.head(), nullptr, logits};
    LinearForward args;
    args.x = normed;
    args.modules = std::span(&head, 1);
    backend_.forward(args);
    return logits;
  }

  void score_run(SequenceRows& sequence, int64_t first, std::span<const int32_t> rows) const {
    std::vector<int32_t> at, labels;
    for (int32_t row : rows) {
      at.push_back(static_cast<int32_t>(first) + row);
      labels.push_back(sequence.labels[static_cast<size_t>(row)]);
    }
    const Matrix logits = head_of(at);
    backend_.upload(buffers_.score_labels.as<void>(), labels.data(), labels.size() * sizeof(int32_t));
    CrossEntropy loss;
    loss.logits = logits;
    loss.labels = buffers_.score_labels.as<int32_t>();
    loss.loss = buffers_.score_losses.as<float>();
    backend_.forward(loss);
    std::vector<float> losses(labels.size());
    backend_.download(losses.data(), loss.loss, losses.size() * sizeof(float));
    for (size_t i = 0; i < rows.size(); ++i) sequence.scores[static_cast<size_t>(rows[i])] = -losses[i];
  }

  void start_trace(SequenceRows& sequence) const {
    if (!sequence.trace || !sequence.routing->mixture) return;
    RoutingTrace& trace = *sequence.trace;
    trace.layers = config_.num_layers;
    trace.rows = sequence.routing->mode == Mode::kToken ? static_cast<int64_t>(sequence.ids.size()) : 1;
    trace.width = sequence.routing->mixture->shape().width();
    trace.records.assign(static_cast<size_t>(trace.layers * trace.rows * trace.width), 0);
  }

  void trace(int64_t layer, int64_t row, int64_t count) const {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      RoutingTrace* trace = sequences_[i].trace;
      const SequenceRouting& routing = *sequences_[i].routing;
      if (!trace || routing.mode == Mode::kBase) continue;
      const int64_t first = std::max(begin_[i], row), end = std::min(begin_[i + 1], row + count);
      if (first >= end) continue;
      float* to = trace->records.data() + layer * trace->rows * trace->width;
      if (routing.mode != Mode::kToken) {
        backend_.download(to, routing.records.as<float>() + layer * trace->width,
                          static_cast<size_t>(trace->width) * sizeof(float));
        continue;
      }
      for (int64_t at = first; at < end; ++at) {
        backend_.download(to + (at - begin_[i]) * trace->width, records(count).row(at - row),
                          static_cast<size_t>(trace->width) * sizeof(float));
      }
    }
  }

  const Model& model_;
  const ModelConfig& config_;
  Backend& backend_;
  Workspace::Buffers& buffers_;
  KvPool& kv_;
  std::span<SequenceRows> sequences_;
  std::vector<int64_t> begin_;
  int64_t rows_ = 0;
};

}  // namespace

Pass forward(const Model& model, Workspace& workspace, KvPool& kv, std::span<SequenceRows> sequences,
             ForwardResult& result) {
  InferencePass pass(model, workspace, kv, sequences);
  co_await pass.layers();
  co_await pass.score();
  co_await pass.all_logits();
  result.logits = pass.last_logits();
}

}  // namespace at_moe
