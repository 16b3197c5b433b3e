// The weights of a mixture: their size, and how they are made.
#include "mixture/weights.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "backend/segments.h"
#include "core/status.h"
#include "mixture/mixture.h"

namespace at_moe {

namespace {

void upload_values(Backend& backend, Buffer& buffer, const void* values, size_t bytes) {
  buffer = backend.allocate(bytes);
  backend.upload(buffer.as<void>(), values, bytes);
}

// Rows are worth gathering, expert by expert, from so many ranks on.
constexpr int64_t kGatheredRanks = 256;

// Do rows select under half of the experts, whatever their scores are?
bool selects_few(const RouterShape& shape, const RouterOptions& options) {
  const auto kept = [](int32_t top_k, int32_t of) { return top_k > 0 ? std::min(top_k, of) : of; };
  std::vector<int32_t> selected;
  selected.reserve(static_cast<size_t>(shape.groups));
  for (int32_t g = 0; g < shape.groups; ++g) {
    selected.push_back(kept(options.expert_top_k, shape.group_start[g + 1] - shape.group_start[g]));
  }
  std::sort(selected.begin(), selected.end(), std::greater<>());
  selected.resize(static_cast<size_t>(kept(options.group_top_k, shape.groups)));
  return 2 * std::accumulate(selected.begin(), selected.end(), 0) < shape.experts;
}

template <typename F>
void for_tensors(MixtureSource& source, bool router, F&& f) {
  if (router) {
    for (auto& [name, tensor] : source.router) f(tensor);
    return;
  }
  auto adapter = [&](AdapterSource& one) {
    for (LoraSource& lora : one.modules) {
      f(lora.a);
      f(lora.b);
    }
  };
  for (AdapterSource& expert : source.experts) adapter(expert);
  if (source.general) adapter(*source.general);
}

}  // namespace

size_t Mixture::bytes_of(const Group& group) const {
  if (group.columns == 0) return 0;
  size_t bytes = backend_.weight_bytes(group.columns, group.inputs, stored_as(group.inputs));
  for (size_t m = 0; m < group.ranks.size(); ++m) {
    if (group.ranks[m]) bytes += backend_.weight_bytes(group.outputs[m], group.ranks[m], stored_as(group.ranks[m]));
  }
  return bytes + static_cast<size_t>(group.columns) * (sizeof(int32_t) + sizeof(float));
}

size_t Mixture::router_bytes(const RouterPlace& place) const {
  return static_cast<size_t>(place.end - place.weight) * sizeof(float) +
         backend_.router_weight_bytes(router_rows(), shapes_.hidden_size);
}

void Mixture::copy_to_memory() {
  const auto copy = [](TensorSource& tensor) {
    check_rows(tensor, 0, tensor.rows());
    if (!tensor.file) return;
    const auto* bytes = static_cast<const uint8_t*>(tensor.data());
    tensor.memory = std::make_shared<const std::vector<uint8_t>>(bytes, bytes + tensor.bytes());
    tensor.file.reset();
  };
  for (const bool router : {false, true}) for_tensors(source_, router, copy);
}

void Mixture::forget_source(bool router) {
  for_tensors(source_, router, [](TensorSource& tensor) {
    tensor.file.reset();
    tensor.memory.reset();
  });
}

void Mixture::detach() {
  auto save = [this](Buffer& arena, std::vector<float>& host) {
    if (!arena) return;
    host.resize(arena.bytes() / sizeof(float));
    backend_.download(host.data(), arena.as<void>(), arena.bytes());
    arena = Buffer();
  };
  save(adapters_, host_adapters_);
  save(routers_, host_routers_);
  weights_.reset();
}

std::unique_ptr<MixtureWeights> Mixture::make_weights(Backend& backend, const std::atomic<bool>& stop) const {
  auto made = std::make_unique<MixtureWeights>();
  made->layers.resize(layers_.size());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (stop) fail(Code::kAborted, "the mixture is not wanted any more");
    for (size_t group = 0; group < kLinearGroups; ++group) {
      make_group(backend, layers_[layer].groups[group], made->layers[layer].groups[group]);
    }
    if (has_router()) make_router(backend, static_cast<int>(layer), made->layers[layer]);
  }
  return made;
}

void Mixture::make_group(Backend& backend, const Group& group, MixtureWeights::Group& made) const {
  made.b.resize(group.blocks.size());
  made.stack.modules.resize(group.blocks.size());
  if (group.columns == 0) return;
  made.a = backend.create_weight(group.columns, group.inputs, stored_as(group.inputs));
  std::vector<int32_t> gate_column(static_cast<size_t>(group.columns));
  std::vector<float> scale(gate_column.size());
  int64_t first = 0;
  for (size_t m = 0; m < group.blocks.size(); ++m) {
    made.stack.modules[m].first = first;
    first += group.ranks[m];
    for (const Block& block : group.blocks[m]) {
      const std::vector<float> a = host_values(slices_[block.slice], made.a->storage());
      backend.pack(*made.a, block.column, block.source->rank, a.data(), DType::f32);
      std::fill_n(gate_column.begin() + block.column, block.source->rank, shape().gate() + block.expert);
      std::fill_n(scale.begin() + block.column, block.source->rank, block.source->scaling);
    }
    if (group.blocks[m].empty()) continue;
    const std::vector<float> b = b_values(group, m);
    made.b[m] = backend.create_weight(group.outputs[m], group.ranks[m], stored_as(group.ranks[m]));
    backend.pack(*made.b[m], 0, group.outputs[m], b.data(), DType::f32);
    made.stack.modules[m].b = made.b[m].get();
  }
  upload_values(backend, made.gate_column, gate_column.data(), gate_column.size() * sizeof(int32_t));
  upload_values(backend, made.scale, scale.data(), scale.size() * sizeof(float));
  made.stack.a = made.a.get();
  made.stack.gate_column = made.gate_column.as<int32_t>();
  made.stack.blocks = gate_blocks(gate_column);
  const int64_t widest = *std::max_element(group.ranks.begin(), group.ranks.end());
  made.stack.selective = has_router() && widest > kGatheredRanks && selects_few(shape(), source_.options);
  made.stack.scale = made.scale.as<float>();
}

std::vector<float> Mixture::b_values(const Group& group, size_t module) const {
  const int64_t ranks = group.ranks[module], outputs = group.outputs[module];
  std::vector<float> values(static_cast<size_t>(outputs * ranks));
  int64_t column = 0;
  for (const Block& block : group.blocks[module]) {
    const std::vector<float> b = host_values(slices_[block.slice + 1], stored_as(ranks));
    for (int64_t row = 0; row < outputs; ++row) {
      std::copy_n(b.begin() + row * block.source->rank, block.source->rank, values.begin() + row * ranks + column);
    }
    column += block.source->rank;
  }
  return values;
}

void Mixture::make_router(Backend& backend, int layer, MixtureWeights::Layer& made) const {
  const RouterPlace& place = layers_[static_cast<size_t>(layer)].place;
  const std::vector<float> values = router_layer_values(place);
  upload_values(backend, made.router_values, values.data(), values.size() * sizeof(float));
  made.router_weight = backend.create_router_weight(router_rows(), shapes_.hidden_size);
  backend.pack(*made.router_weight, 0, router_rows(), values.data(), DType::f32);
  bind_router(place, made, made.router_values.as<float>());
}

void Mixture::bind_router(const RouterPlace& place, MixtureWeights::Layer& layer, const float* values) const {
  auto at = [&](int64_t offset) { return offset < 0 ? nullptr : values + (offset - place.weight); };
  layer.router.weight = layer.router_weight.get();
  layer.router.bias = at(place.bias);
  layer.router.score = at(place.score);
  layer.router.balance = has_general() ? at(place.balance) : nullptr;
  layer.router.log_scale = at(place.log_scale);
  layer.router.balance_constant = has_general() ? source_.balance : 1.0f;
  layer.router.scale_constant = source_.scale;
}

}  // namespace at_moe
