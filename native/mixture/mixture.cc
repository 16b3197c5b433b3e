#include "mixture/mixture.h"

#include <algorithm>
#include <cmath>

#include "core/q8.h"
#include "core/status.h"

namespace at_moe {

namespace {

std::string adapter_prefix(int expert, int experts) {
  return expert == experts ? std::string("general.") : concat("experts.", expert, ".");
}

// The widest type of the sources.
DType widest_type(const MixtureSource& source) {
  auto widest = [](const AdapterSource& adapter, DType type) {
    for (const LoraSource& lora : adapter.modules) {
      if (lora.a.dtype() != type || lora.b.dtype() != type) return DType::f32;
    }
    return type;
  };
  const AdapterSource* any = source.general ? &*source.general : nullptr;
  for (const AdapterSource& expert : source.experts) any = expert.modules.empty() ? any : &expert;
  if (!any || any->modules.empty()) return DType::f32;
  DType type = any->modules.front().a.dtype();
  for (const AdapterSource& expert : source.experts) type = widest(expert, type);
  return source.general ? widest(*source.general, type) : type;
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
  widest_ = storage_of(widest_type(source_));
  for (int layer = 0; layer < shapes_.layers; ++layer) {
    for (int group = 0; group < kLinearGroups; ++group) {
      plan_group(layer, group);
      weights_bytes_ += bytes_of(layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)]);
    }
    if (!has_router()) continue;
    plan_router(layer);
    weights_bytes_ += router_bytes(layers_[static_cast<size_t>(layer)].place);
  }
}

Mixture::~Mixture() = default;

Storage Mixture::stored_as(int64_t inputs) const {
  const Storage storage = source_.storage.value_or(widest_);
  return is_blocks(storage) && inputs < kQ8Block ? widest_ : storage;
}

void Mixture::plan_group(int layer, int group_index) {
  Group& group = layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group_index)];
  const int first = kGroupStart[static_cast<size_t>(group_index)];
  const int modules = kGroupStart[static_cast<size_t>(group_index) + 1] - first;
  group.blocks.resize(static_cast<size_t>(modules));
  group.ranks.resize(static_cast<size_t>(modules));
  group.b_offset.resize(static_cast<size_t>(modules));
  group.outputs.resize(static_cast<size_t>(modules));
  auto collect = [&](const AdapterSource& adapter, int expert, int module) {
    for (const LoraSource& lora : adapter.modules) {
      if (lora.layer != layer || lora.module != module) continue;
      check_shape(lora.a, lora.rank, shapes_.in_features[static_cast<size_t>(module)]);
      check_shape(lora.b, shapes_.out_features[static_cast<size_t>(module)], lora.rank);
      group.blocks[static_cast<size_t>(module - first)].push_back({&lora, expert, group.columns, 0});
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
  group.inputs = inputs;
  group.a_offset = adapter_count_;
  adapter_count_ += group.columns * inputs;
  for (int index = 0; index < modules; ++index) {
    const size_t m = static_cast<size_t>(index);
    const int64_t outputs = shapes_.out_features[static_cast<size_t>(first + index)];
    group.outputs[m] = outputs;
    group.b_offset[m] = adapter_count_;
    int64_t column = 0;
    for (Block& block : group.blocks[m]) {
      const std::string name =
          concat(adapter_prefix(block.expert, shape().experts), "layers.", layer, ".", module_name(first + index));
      const int64_t rank = block.source->rank;
      block.slice = slices_.size();
      slices_.push_back(
          {name + ".lora_A", group.a_offset + block.column * inputs, rank, inputs, inputs, false, &block.source->a});
      slices_.push_back(
          {name + ".lora_B", group.b_offset[m] + column, outputs, rank, group.ranks[m], false, &block.source->b});
      column += rank;
    }
    adapter_count_ += outputs * group.ranks[m];
  }
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
  if (stack_columns(layer, group) == 0) return nullptr;
  return &weights_->layers[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)].stack;
}

const RouterLayer& Mixture::router(int layer) const { return weights_->layers[static_cast<size_t>(layer)].router; }

std::vector<float> Mixture::explicit_record(int layer, const std::vector<float>& expert_weights, bool alone) const {
  std::vector<float> record(static_cast<size_t>(shape().width()));
  const RouterPlace& place = layers_[static_cast<size_t>(layer)].place;
  float balance = has_general() && !alone ? source_.balance : 1.0f;
  float scale = alone ? 1.0f : source_.scale;
  if (!alone && has_general() && place.balance >= 0)
    balance = 1.0f / (1.0f + std::exp(-router_value(place, place.balance)));
  if (!alone && place.log_scale >= 0) scale = std::exp(router_value(place, place.log_scale));
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
