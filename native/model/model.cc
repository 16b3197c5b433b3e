#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "core/status.h"

namespace at_moe {

namespace {

constexpr int64_t kStepElements = 16 << 20;
constexpr size_t kPopulateBytes = 64 << 20;
constexpr float kLargestFloat = std::numeric_limits<float>::max();
constexpr const char* kHeadName = "lm_head.weight";

std::vector<float> random_values(int64_t count, float range, uint64_t seed, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); i += 4) {
    const auto bits = philox(seed, stream, i / 4);
    for (size_t j = 0; j < 4 && i + j < values.size(); ++j) values[i + j] = (2 * uniform(bits[j]) - 1) * range;
  }
  return values;
}

// So that a disk reads on without going back.
std::vector<const TensorSource*> in_file_order(const std::map<std::string, TensorSource>& tensors) {
  std::vector<const TensorSource*> order;
  order.reserve(tensors.size());
  for (const auto& [name, source] : tensors) order.push_back(&source);
  std::stable_sort(order.begin(), order.end(), [](const TensorSource* a, const TensorSource* b) {
    return std::pair(a->file.get(), a->offset) < std::pair(b->file.get(), b->offset);
  });
  return order;
}

Buffer map_section(const PackedSource& packed, const std::string& name) {
  const PackedSource::Section& section = packed.section(name);
  // Nothing writes to it: the mapping is read-only.
  auto* data = const_cast<uint8_t*>(packed.file->data()) + section.offset;
  return {data, section.bytes, [file = packed.file](void*, size_t) {}};
}

}  // namespace

// Where the rows of one checkpoint tensor go.
struct Model::Target {
  std::unique_ptr<Weight>* weight = nullptr;  // packed rows
  std::unique_ptr<Weight>* also = nullptr;    // the tied head beside the embedding
  Buffer* vector = nullptr;                   // f32 values
  bool embedding = false;

  Weight* packed() const { return weight ? weight->get() : also ? also->get() : nullptr; }
  // The largest magnitude that can be stored.
  float most() const { return packed() ? largest_stored(packed()->storage()) : kLargestFloat; }
};

// Rows of a tensor: a multiple of 16 of them, or up to its last.
struct Model::Piece {
  const TensorSource* source = nullptr;
  int64_t row = 0, count = 0;

  void prefetch() const { source->prefetch(row, count); }
  size_t bytes() const { return source->bytes() / static_cast<size_t>(source->rows()) * static_cast<size_t>(count); }
};

Model::Model(Backend& backend, ModelConfig config, Storage storage, bool trainable)
    : backend_(backend),
      config_(std::move(config)),
      storage_(storage),
      trainable_(trainable),
      layers_(static_cast<size_t>(config_.num_layers)) {
  require(!trainable || storage == Storage::f32, "training the base needs f32 storage");
  const std::vector<double> frequencies = config_.inverse_frequencies();
  inverse_frequencies_ = backend_.allocate(frequencies.size() * sizeof(double));
  backend_.upload(inverse_frequencies_.as<void>(), frequencies.data(), frequencies.size() * sizeof(double));
  const LayerShapes shapes = config_.layer_shapes();
  for (Layer& layer : layers_) {
    for (size_t module = 0; module < kModules; ++module) {
      layer.weight[module] = backend_.create_weight(shapes.out_features[module], shapes.in_features[module], storage_);
      bytes_ += layer.weight[module]->bytes();
    }
  }
  head_ = backend_.create_weight(config_.vocab_size, config_.hidden_size, storage_);
  bytes_ += head_->bytes();
}

Model::Target Model::target(const std::string& name) {
  if (name == "embed_tokens.weight") return {nullptr, config_.tie_word_embeddings ? &head_ : nullptr, nullptr, true};
  if (name == kHeadName) return {&head_, nullptr, nullptr, false};
  if (name == "norm.weight") return {nullptr, nullptr, &final_norm_, false};
  const size_t dot = name.find('.', 7);
  Layer& layer = layers_.at(static_cast<size_t>(std::stoll(name.substr(7))));
  const std::string rest = name.substr(dot + 1);
  if (rest == "input_layernorm.weight") return {nullptr, nullptr, &layer.input_norm, false};
  if (rest == "post_attention_layernorm.weight") return {nullptr, nullptr, &layer.post_norm, false};
  if (rest == "self_attn.q_norm.weight") return {nullptr, nullptr, &layer.q_norm, false};
  if (rest == "self_attn.k_norm.weight") return {nullptr, nullptr, &layer.k_norm, false};
  for (size_t module = 0; module < kModules; ++module) {
    if (rest == std::string(module_name(static_cast<int>(module))) + ".weight")
      return {&layer.weight[module], nullptr, nullptr, false};
    if (rest == std::string(module_name(static_cast<int>(module))) + ".bias")
      return {nullptr, nullptr, &layer.bias[module], false};
  }
  fail(Code::kMismatch, "the model has no tensor named ", name);
}

std::vector<std::vector<Model::Piece>> Model::steps(const std::map<std::string, TensorSource>& tensors) {
  std::vector<std::vector<Piece>> steps;
  int64_t room = 0;
  for (const TensorSource* source : in_file_order(tensors)) {
    for (int64_t row = 0, count = 0; row < source->rows(); row += count) {
      if (room < 16 * source->cols()) {
        steps.emplace_back();
        room = kStepElements;
      }
      const int64_t fit = std::max<int64_t>(16, room / source->cols() / 16 * 16);
      count = std::min(fit, source->rows() - row);
      room -= count * source->cols();
      steps.back().push_back({source, row, count});
    }
  }
  return steps;
}

void Model::place(std::span<const Piece> step) {
  try {
    std::vector<LoadedRows> parts;
    for (const Piece& piece : step) {
      const Target to = target(piece.source->name);
      if (is_widened(*piece.source, to)) {
        place_widened(piece, to);
      } else {
        void* table = to.embedding ? embedding_.as<void>() : nullptr;
        parts.push_back({piece.source, piece.row, piece.count, to.packed(), table, to.most()});
      }
    }
    backend_.load(parts);
  } catch (const Error&) {
    // Of several bad values the first is told, whichever a thread met first.
    for (const Piece& piece : step)
      check_rows(*piece.source, piece.row, piece.count, target(piece.source->name).most());
    throw;
  }
}

bool Model::is_widened(const TensorSource& source, const Target& to) const {
  const bool unpacked = is_blocks(source.storage) && to.packed() && !is_blocks(to.packed()->storage());
  return to.vector || trainable_ || unpacked;
}

void Model::place_widened(const Piece& piece, const Target& to) {
  const TensorSource& source = *piece.source;
  const std::vector<float> values = widen(source, piece.row, piece.count);
  const int64_t first = piece.row * source.cols();
  const auto upload = [&](float* table) {
    backend_.upload(table + first, values.data(), values.size() * sizeof(float));
  };
  if (to.packed()) backend_.pack(*to.packed(), piece.row, piece.count, values.data(), DType::f32);
  if (to.vector) upload(to.vector->as<float>());
  if (to.embedding && trainable_) upload(embedding_.as<float>());
  if (trainable_) upload(arena_.as<float>() + parameter_offset(source.name));
}

void Model::prepare(const TensorSource& source) {
  const Target to = target(source.name);
  if (to.vector) {
    *to.vector = backend_.allocate(static_cast<size_t>(source.elements()) * sizeof(float));
    bytes_ += to.vector->bytes();
  }
  if (to.embedding) {
    embedding_type_ = trainable_ ? DType::f32 : source.dtype();
    embedding_ = backend_.allocate(static_cast<size_t>(source.elements()) * size_of(embedding_type_));
    bytes_ += embedding_.bytes();
  }
}

void Model::adopt(const std::string& name, std::unique_ptr<Weight>& weight, const PackedSource& packed) {
  bytes_ -= weight->bytes();
  weight = backend_.adopt_weight(weight->rows(), weight->cols(), storage_, map_section(packed, name));
  bytes_ += weight->bytes();
  mapped_bytes_ += weight->bytes();
}

bool Model::adopt(const TensorSource& source, const PackedSource& packed) {
  const Target to = target(source.name);
  if (to.weight) adopt(source.name, *to.weight, packed);
  if (to.also) adopt(kHeadName, *to.also, packed);
  if (to.embedding) {
    embedding_type_ = source.dtype();
    embedding_ = map_section(packed, source.name);
    if (embedding_.bytes() < source.bytes())
      fail(Code::kBadFile, packed.file->path(), ": too few bytes of ", source.name);
    bytes_ += embedding_.bytes();
    mapped_bytes_ += embedding_.bytes();
  }
  return to.weight || to.embedding;
}

std::map<std::string, std::span<const uint8_t>> Model::packed_weights() {
  std::map<std::string, std::span<const uint8_t>> found;
  for (const BaseParameter& parameter : parameters_) {
    const Target to = target(parameter.name);
    if (to.weight) found[parameter.name] = (*to.weight)->host_bytes();
    if (to.also) found[kHeadName] = (*to.also)->host_bytes();
    if (to.embedding) found[parameter.name] = {embedding_.as<const uint8_t>(), embedding_.bytes()};
  }
  return found;
}

Pass Model::load(std::map<std::string, TensorSource> tensors, std::optional<PackedSource> packed,
                 std::function<void(size_t, size_t)> progress) {
  size_t total = 0, done = 0;
  require(!packed || !trainable_, "weights that are trained are not read from a file of packed weights");
  for (auto at = tensors.begin(); at != tensors.end();) {
    TensorSource& source = at->second;
    source.name = at->first;
    parameters_.push_back({source.name, parameter_count_, source.rows(), source.cols()});
    parameter_count_ += source.elements();
    if (packed && adopt(source, *packed)) {
      at = tensors.erase(at);
      continue;
    }
    prepare(source);
    total += source.bytes();
    ++at;
  }
  if (packed) {
    total += packed->file->size();
    for (size_t from = 0; from < packed->file->size(); from += kPopulateBytes) {
      const size_t bytes = std::min(kPopulateBytes, packed->file->size() - from);
      packed->file->populate(from, bytes);
      done += bytes;
      if (progress) progress(done, total);
      co_await unit_end();
    }
  }
  if (trainable_) arena_ = backend_.allocate(static_cast<size_t>(parameter_count_) * sizeof(float));
  const std::vector<std::vector<Piece>> all = steps(tensors);
  const auto prefetch = [&](size_t step) {
    if (step < all.size()) std::ranges::for_each(all[step], &Piece::prefetch);
  };
  prefetch(0);
  for (size_t step = 0; step < all.size(); ++step) {
    prefetch(step + 1);
    place(all[step]);
    for (const Piece& piece : all[step]) done += piece.bytes();
    if (progress) progress(done, total);
    co_await unit_end();
  }
}

Pass Model::load_random(uint64_t seed) {
  const LayerShapes shapes = config_.layer_shapes();
  uint64_t stream = 0;
  auto vector = [&](Buffer& buffer, int64_t count, float value) {
    const std::vector<float> values(static_cast<size_t>(count), value);
    buffer = backend_.allocate(values.size() * sizeof(float));
    backend_.upload(buffer.as<void>(), values.data(), values.size() * sizeof(float));
    bytes_ += buffer.bytes();
  };
  for (Layer& layer : layers_) {
    vector(layer.input_norm, config_.hidden_size, 1);
    vector(layer.post_norm, config_.hidden_size, 1);
    if (config_.qk_norm) vector(layer.q_norm, config_.head_dim, 1);
    if (config_.qk_norm) vector(layer.k_norm, config_.head_dim, 1);
    for (size_t module = 0; module < kModules; ++module) {
      Weight& weight = *layer.weight[module];
      const float range = std::sqrt(3.0f / static_cast<float>(shapes.in_features[module]));
      const int64_t slab = 1024;
      for (int64_t row = 0; row < weight.rows(); row += slab) {
        const int64_t count = std::min(slab, weight.rows() - row);
        const std::vector<float> values = random_values(count * weight.cols(), range, seed, stream++);
        backend_.pack(weight, row, count, values.data(), DType::f32);
        co_await unit_end();
      }
    }
  }
  vector(final_norm_, config_.hidden_size, 1);
  embedding_type_ = is_blocks(storage_) ? DType::bf16 : number_type(storage_);
  const auto table_elements = static_cast<size_t>(config_.vocab_size * config_.hidden_size);
  embedding_ = backend_.allocate(table_elements * size_of(embedding_type_));
  bytes_ += embedding_.bytes();
  // The table's values do not matter to speed; this byte pattern is a small finite number in every stored type.
  const std::vector<uint8_t> table(embedding_.bytes(), 0x3c);
  backend_.upload(embedding_.as<void>(), table.data(), table.size());
  const float range = std::sqrt(3.0f / static_cast<float>(config_.hidden_size));
  for (int64_t row = 0; row < head_->rows(); row += 1024) {
    const int64_t count = std::min<int64_t>(1024, head_->rows() - row);
    const std::vector<float> values = random_values(count * head_->cols(), range, seed, stream++);
    backend_.pack(*head_, row, count, values.data(), DType::f32);
    co_await unit_end();
  }
}

int64_t Model::parameter_offset(const std::string& name) const {
  for (const BaseParameter& parameter : parameters_) {
    if (parameter.name == name) return parameter.offset;
  }
  return -1;
}

void Model::repack() {
  ++version_;
  for (const BaseParameter& parameter : parameters_) {
    const float* values = arena_.as<float>() + parameter.offset;
    const Target to = target(parameter.name);
    const size_t bytes = static_cast<size_t>(parameter.rows * parameter.cols) * sizeof(float);
    if (to.weight) backend_.pack_parameters(**to.weight, 0, parameter.rows, values);
    if (to.also) backend_.pack_parameters(**to.also, 0, parameter.rows, values);
    if (to.vector) backend_.copy(to.vector->as<void>(), values, bytes);
    if (to.embedding) backend_.copy(embedding_.as<void>(), values, bytes);
  }
}

}  // namespace at_moe
