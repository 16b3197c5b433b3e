#include "mixture/mixture.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "backend/segments.h"
#include "core/status.h"

namespace at_moe {

namespace {

std::string adapter_prefix(int expert, int experts) {
  return expert == experts ? std::string("general.") : concat("experts.", expert, ".");
}

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

void check_shape(const TensorSource& tensor, int64_t rows, int64_t cols) {
  if (tensor.shape.size() == 2 && tensor.shape[0] == rows && tensor.shape[1] == cols) return;
  fail(Code::kMismatch, "tensor ", tensor.name, " does not fit the base: it needs [", rows, ", ", cols, "]");
}

}  // namespace

Mixture::Mixture(Backend& backend, const LayerShapes& shapes, MixtureSource source)
    : backend_(backend), shapes_(shapes), source_(std::move(source)), layers_(static_cast<size_t>(shapes.layers)) {
  require(static_cast<int>(source_.experts.size()) == shape().experts, "experts do not fit the router shape");
  require(static_cast<int>(shape().group_start.size()) == shape().groups + 1, "group_start has the wrong length");
  for (int layer = 0; layer < shapes_.layers; ++layer) {
    for (int group = 0; group < kLinearGroups; ++group) {
      plan_group(layer, group);
      load_group(layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)]);
    }
    if (!has_router()) continue;
    plan_router(layer);
    load_router(layer);
  }
}

Mixture::~Mixture() = default;

void Mixture::plan_group(int layer, int group_index) {
  Group& group = layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group_index)];
  const int first = kGroupStart[static_cast<size_t>(group_index)];
  const int modules = kGroupStart[static_cast<size_t>(group_index) + 1] - first;
  group.blocks.resize(static_cast<size_t>(modules));
  group.ranks.resize(static_cast<size_t>(modules));
  group.b_offset.resize(static_cast<size_t>(modules));
  auto collect = [&](const AdapterSource& adapter, int expert, int module) {
    for (const LoraSource& lora : adapter.modules) {
      if (lora.layer != layer || lora.module != module) continue;
      check_shape(lora.a, lora.rank, shapes_.in_features[static_cast<size_t>(module)]);
      check_shape(lora.b, shapes_.out_features[static_cast<size_t>(module)], lora.rank);
      group.blocks[static_cast<size_t>(module - first)].push_back({&lora, expert, group.columns});
      group.columns += lora.rank;
      group.ranks[static_cast<size_t>(module - first)] += lora.rank;
    }
  };
  for (int module = first; module < first + modules; ++module) {
    for (int expert = 0; expert < shape().experts; ++expert)
      collect(source_.experts[static_cast<size_t>(expert)], expert, module);
    if (source_.general) collect(*source_.general, shape().experts, module);
  }
  const int64_t inputs = shapes_.in_features[static_cast<size_t>(first)];
  group.a_offset = adapter_count_;
  adapter_count_ += group.columns * inputs;
  for (int index = 0; index < modules; ++index) {
    const size_t m = static_cast<size_t>(index);
    const int64_t outputs = shapes_.out_features[static_cast<size_t>(first + index)];
    group.b_offset[m] = adapter_count_;
    int64_t column = 0;
    for (const Block& block : group.blocks[m]) {
      const std::string name =
          concat(adapter_prefix(block.expert, shape().experts), "layers.", layer, ".", module_name(first + index));
      const int64_t rank = block.source->rank;
      slices_.push_back(
          {name + ".lora_A", group.a_offset + block.column * inputs, rank, inputs, inputs, false, &block.source->a});
      slices_.push_back(
          {name + ".lora_B", group.b_offset[m] + column, outputs, rank, group.ranks[m], false, &block.source->b});
      column += rank;
    }
    adapter_count_ += outputs * group.ranks[m];
  }
}

DType Mixture::storage_type() const {
  if (source_.storage) return *source_.storage;
  auto widest = [](const AdapterSource& adapter, DType type) {
    for (const LoraSource& lora : adapter.modules) {
      if (lora.a.dtype() != type || lora.b.dtype() != type) return DType::f32;
    }
    return type;
  };
  const AdapterSource* any = source_.general ? &*source_.general : nullptr;
  for (const AdapterSource& expert : source_.experts) any = expert.modules.empty() ? any : &expert;
  if (!any || any->modules.empty()) return DType::f32;
  DType type = any->modules.front().a.dtype();
  for (const AdapterSource& expert : source_.experts) type = widest(expert, type);
  return source_.general ? widest(*source_.general, type) : type;
}

std::vector<float> Mixture::adapter_values(const Group& group, int module) const {
  const size_t m = static_cast<size_t>(module);
  const int64_t ranks = group.ranks[m];
  const int64_t outputs = group.blocks[m].front().source->b.shape[0];
  std::vector<float> values(static_cast<size_t>(outputs * ranks));
  int64_t column = 0;
  for (const Block& block : group.blocks[m]) {
    const std::vector<float> b = widen(block.source->b);
    for (int64_t row = 0; row < outputs; ++row) {
      std::copy_n(b.begin() + row * block.source->rank, block.source->rank, values.begin() + row * ranks + column);
    }
    column += block.source->rank;
  }
  return values;
}

void Mixture::load_group(Group& group) {
  const DType storage = storage_type();
  group.b.resize(group.blocks.size());
  group.stack.modules.resize(group.blocks.size());
  if (group.columns == 0) return;
  std::vector<int32_t> gate_column(static_cast<size_t>(group.columns));
  std::vector<float> scale(gate_column.size());
  int64_t first = 0;
  for (size_t m = 0; m < group.blocks.size(); ++m) {
    group.stack.modules[m].first = first;
    first += group.ranks[m];
    for (const Block& block : group.blocks[m]) {
      if (!group.a) group.a = backend_.create_weight(group.columns, block.source->a.shape[1], storage_of(storage));
      const std::vector<float> a = widen(block.source->a);
      backend_.pack(*group.a, block.column, block.source->rank, a.data(), DType::f32, nullptr);
      std::fill_n(gate_column.begin() + block.column, block.source->rank, shape().gate() + block.expert);
      std::fill_n(scale.begin() + block.column, block.source->rank, block.source->scaling);
    }
    if (group.blocks[m].empty()) continue;
    const std::vector<float> b = adapter_values(group, static_cast<int>(m));
    const int64_t outputs = static_cast<int64_t>(b.size()) / group.ranks[m];
    group.b[m] = backend_.create_weight(outputs, group.ranks[m], storage_of(storage));
    backend_.pack(*group.b[m], 0, outputs, b.data(), DType::f32, nullptr);
    group.stack.modules[m].b = group.b[m].get();
  }
  upload_values(backend_, group.gate_column, gate_column.data(), gate_column.size() * sizeof(int32_t));
  upload_values(backend_, group.scale, scale.data(), scale.size() * sizeof(float));
  group.stack.a = group.a.get();
  group.stack.gate_column = group.gate_column.as<int32_t>();
  group.stack.blocks = gate_blocks(gate_column);
  const int64_t widest = *std::max_element(group.ranks.begin(), group.ranks.end());
  group.stack.selective = has_router() && widest > kGatheredRanks && selects_few(shape(), source_.options);
  group.stack.scale = group.scale.as<float>();
}

size_t Mixture::device_bytes() const {
  size_t bytes = adapters_.bytes() + routers_.bytes();
  for (const Layer& layer : layers_) {
    bytes += layer.router_values.bytes() + (layer.router_weight ? layer.router_weight->bytes() : 0);
    for (const Group& group : layer.groups) {
      bytes += group.a ? group.a->bytes() : 0;
      for (const auto& b : group.b) bytes += b ? b->bytes() : 0;
      bytes += group.gate_column.bytes() + group.scale.bytes();
    }
  }
  return bytes;
}

int64_t Mixture::stack_columns(int layer, int group) const {
  return layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)].columns;
}

int64_t Mixture::max_stack_columns() const {
  int64_t most = 0;
  for (const Layer& layer : layers_) {
    for (const Group& group : layer.groups) most = std::max(most, group.columns);
  }
  return most;
}

const AdapterStack* Mixture::stack(int layer, int group) const {
  const Group& place = layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)];
  return place.columns ? &place.stack : nullptr;
}

const RouterLayer& Mixture::router(int layer) const { return layers_[static_cast<size_t>(layer)].router; }

std::vector<float> Mixture::explicit_record(int layer, const std::vector<float>& expert_weights, bool alone) const {
  std::vector<float> record(static_cast<size_t>(shape().width()));
  const RouterPlace& place = layers_[static_cast<size_t>(layer)].place;
  float balance = has_general() && !alone ? source_.balance : 1.0f;
  float scale = alone ? 1.0f : source_.scale;
  if (!alone && has_general() && place.balance >= 0)
    balance = 1.0f / (1.0f + std::exp(-router_value(layer, place.balance)));
  if (!alone && place.log_scale >= 0) scale = std::exp(router_value(layer, place.log_scale));
  for (int group = 0; group < shape().groups; ++group) {
    for (int expert = shape().group_start[static_cast<size_t>(group)];
         expert < shape().group_start[static_cast<size_t>(group) + 1]; ++expert) {
      const float weight = expert_weights[static_cast<size_t>(expert)];
      record[static_cast<size_t>(shape().alpha() + group)] += weight;
      record[static_cast<size_t>(shape().weight() + expert)] = weight;
      record[static_cast<size_t>(shape().gate() + expert)] = balance * scale * weight;
    }
  }
  record.back() = 1.0f - balance;
  return record;
}

}  // namespace at_moe
