#include "model/workspace.h"

#include <algorithm>
#include <array>

namespace at_moe {

Workspace::Buffers::Buffers(const Model& model, int64_t rows_, int64_t sequences_, int64_t pages_, int64_t chunk_)
    : backend(model.backend()),
      rows(rows_),
      sequences(sequences_),
      pages_per_sequence(pages_),
      chunk(std::min(chunk_, rows_)),
      type(backend.activation_type()) {
  const ModelConfig& config = model.config();
  const int64_t queries = config.num_heads * config.head_dim, keys = config.num_kv_heads * config.head_dim;
  auto activations = [&](int64_t count, int64_t cols) {
    return backend.allocate(static_cast<size_t>(count * cols) * size_of(type));
  };
  auto indices = [&](int64_t count) { return backend.allocate(static_cast<size_t>(count) * sizeof(int32_t)); };
  auto floats = [&](int64_t count) { return backend.allocate(static_cast<size_t>(count) * sizeof(float)); };
  hidden = floats(rows * config.hidden_size);
  z = activations(chunk, config.hidden_size);
  q = activations(chunk, queries);
  k = activations(chunk, keys);
  v = activations(chunk, keys);
  if (type != DType::f32) q_in = floats(chunk * queries);
  if (type != DType::f32) k_in = floats(chunk * keys);
  attention = activations(chunk, queries);
  gate = activations(chunk, config.intermediate_size);
  up = activations(chunk, config.intermediate_size);
  ids = indices(rows);
  position = indices(rows);
  sequence = indices(rows);
  pages = indices(sequences * pages_per_sequence);
  last = floats(std::max(sequences, chunk) * config.hidden_size);
  normed = activations(std::max(sequences, chunk), config.hidden_size);
  last_rows = indices(std::max(sequences, chunk));
  logits = floats(std::max<int64_t>(sequences, std::min<int64_t>(chunk, 64)) * config.vocab_size);
  score_labels = indices(chunk);
  score_losses = floats(chunk);
  backend.reserve(
      {chunk, sequences, pages_per_sequence * kPageTokens, std::max(config.hidden_size, config.intermediate_size)});
}

void Workspace::Buffers::fit(int64_t columns_wanted, int64_t width_wanted, int64_t scores_wanted) {
  auto grow = [&](Buffer& buffer, int64_t& have, int64_t want, int64_t count) {
    if (want <= have) return;
    buffer = backend.allocate(static_cast<size_t>(want * count) * sizeof(float));
    have = want;
  };
  grow(gated, columns, columns_wanted, chunk);
  grow(records, width, width_wanted, chunk);
  grow(scores, score_columns, scores_wanted, rows);
}

size_t Workspace::Buffers::bytes() const {
  size_t total = 0;
  for (const Buffer* buffer :
       std::array{&hidden, &z,    &q,         &k,       &v,      &attention,    &gate,        &up,
                  &gated,  &q_in, &k_in,      &records, &scores, &ids,          &position,    &sequence,
                  &pages,  &last, &last_rows, &normed,  &logits, &score_labels, &score_losses}) {
    total += buffer->bytes();
  }
  return total;
}

Workspace::Workspace(const Model& model, int64_t rows, int64_t sequences, int64_t pages_per_sequence, int64_t chunk)
    : rows_(rows),
      chunk_(std::min(chunk, rows)),
      buffers_(std::make_unique<Buffers>(model, rows, sequences, pages_per_sequence, chunk)) {}

Workspace::~Workspace() = default;

size_t Workspace::bytes() const { return buffers_->bytes(); }

size_t Workspace::bytes(const ModelConfig& config, int64_t rows, int64_t sequences, int64_t chunk) {
  chunk = std::min(chunk, rows);
  const int64_t per_row = 2 * config.hidden_size + 2 * (config.num_heads + config.num_kv_heads) * config.head_dim +
                          2 * config.intermediate_size;
  const int64_t wide = std::max<int64_t>(sequences, std::min<int64_t>(chunk, 64));
  return static_cast<size_t>(rows * config.hidden_size + chunk * per_row + wide * config.vocab_size) * sizeof(float);
}

}  // namespace at_moe
