// The routers of a mixture and the parameter arenas: loading, binding, packing, reading back.
#include <algorithm>

#include "core/status.h"
#include "mixture/mixture.h"

namespace at_moe {

void Mixture::plan_router(int layer_index) {
  RouterPlace& place = layers_[static_cast<size_t>(layer_index)].place;
  const int64_t width = shapes_.hidden_size;
  const int groups = shape().groups, experts = shape().experts;
  const bool conditional = source_.options.conditional;
  const std::string prefix = concat("router.layers.", layer_index, ".");
  auto take = [&](int64_t count) {
    const int64_t offset = router_count_;
    router_count_ += count;
    return offset;
  };
  auto slice = [&](const char* name, int64_t offset, int64_t rows, int64_t cols) {
    const auto source = source_.router.find(concat("layers.", layer_index, ".", name));
    const TensorSource* tensor = source == source_.router.end() ? nullptr : &source->second;
    if (tensor && tensor->elements() != rows * cols) {
      fail(Code::kMismatch, "router tensor ", tensor->name, " has ", tensor->elements(), " values, needs ",
           rows * cols);
    }
    slices_.push_back({prefix + name, offset, rows, cols, cols, true, tensor});
  };
  place.weight = take(router_rows() * width);
  slice("group.weight", place.weight, groups, width);
  if (conditional) slice("expert.weight", place.weight + groups * width, experts, width);
  place.bias = take(router_rows());
  slice("group.bias", place.bias, 1, groups);
  if (conditional) slice("expert.bias", place.bias + groups, 1, experts);
  if (!conditional) {
    place.score = take(experts);
    slice("expert.score", place.score, 1, experts);
  }
  if (source_.learned_balance) {
    place.balance = take(1);
    slice("balance", place.balance, 1, 1);
  }
  if (source_.learned_scale) {
    place.log_scale = take(1);
    slice("scale", place.log_scale, 1, 1);
  }
  place.end = router_count_;
}

std::vector<float> Mixture::router_layer_values(int layer_index) const {
  const RouterPlace& place = layers_[static_cast<size_t>(layer_index)].place;
  std::vector<float> values(static_cast<size_t>(place.end - place.weight));
  for (const ParameterSlice& slice : slices_) {
    if (!slice.router || !slice.source || slice.offset < place.weight || slice.offset >= place.end) continue;
    const std::vector<float> tensor = widen(*slice.source);
    std::copy(tensor.begin(), tensor.end(), values.begin() + (slice.offset - place.weight));
  }
  return values;
}

void Mixture::load_router(int layer_index) {
  Layer& layer = layers_[static_cast<size_t>(layer_index)];
  const std::vector<float> values = router_layer_values(layer_index);
  layer.router_values = backend_.allocate(values.size() * sizeof(float));
  backend_.upload(layer.router_values.as<void>(), values.data(), values.size() * sizeof(float));
  layer.router_weight = backend_.create_router_weight(router_rows(), shapes_.hidden_size);
  backend_.pack(*layer.router_weight, 0, router_rows(), values.data(), DType::f32, nullptr);
  bind_router(layer, layer.router_values.as<float>());
}

void Mixture::bind_router(Layer& layer, const float* values) {
  const RouterPlace& place = layer.place;
  auto at = [&](int64_t offset) { return offset < 0 ? nullptr : values + (offset - place.weight); };
  layer.router.weight = layer.router_weight.get();
  layer.router.bias = at(place.bias);
  layer.router.score = at(place.score);
  layer.router.balance = has_general() ? at(place.balance) : nullptr;
  layer.router.log_scale = at(place.log_scale);
  layer.router.balance_constant = has_general() ? source_.balance : 1.0f;
  layer.router.scale_constant = source_.scale;
}

void Mixture::enable_training() {
  if (trainable()) return;
  std::vector<float> values(static_cast<size_t>(std::max<int64_t>(adapter_count_, 1)));
  for (Layer& layer : layers_) {
    for (Group& group : layer.groups) {
      for (size_t m = 0; m < group.blocks.size(); ++m) {
        for (const Block& block : group.blocks[m]) {
          const std::vector<float> a = widen(block.source->a);
          std::copy(a.begin(), a.end(), values.begin() + group.a_offset + block.column * block.source->a.shape[1]);
        }
        if (group.blocks[m].empty()) continue;
        const std::vector<float> b = adapter_values(group, static_cast<int>(m));
        std::copy(b.begin(), b.end(), values.begin() + group.b_offset[m]);
      }
    }
  }
  adapters_ = backend_.allocate(values.size() * sizeof(float));
  backend_.upload(adapters_.as<void>(), values.data(), values.size() * sizeof(float));
  if (!has_router()) return;
  std::vector<float> routers;
  for (int layer = 0; layer < shapes_.layers; ++layer) {
    const std::vector<float> part = router_layer_values(layer);
    routers.insert(routers.end(), part.begin(), part.end());
  }
  routers_ = backend_.allocate(routers.size() * sizeof(float));
  backend_.upload(routers_.as<void>(), routers.data(), routers.size() * sizeof(float));
  for (Layer& layer : layers_) bind_router(layer, routers_.as<float>() + layer.place.weight);
}

AdapterGradients Mixture::adapter_gradients(int layer, int group_index, float* arena) const {
  const Group& group = layers_[static_cast<size_t>(layer)].groups[static_cast<size_t>(group_index)];
  AdapterGradients gradients;
  gradients.a = arena + group.a_offset;
  for (size_t m = 0; m < group.blocks.size(); ++m) {
    gradients.b.push_back(group.blocks[m].empty() ? nullptr : arena + group.b_offset[m]);
  }
  return gradients;
}

Mixture::RouterGradients Mixture::router_gradients(int layer, float* arena) const {
  const RouterPlace& place = layers_[static_cast<size_t>(layer)].place;
  auto at = [&](int64_t offset) { return offset < 0 ? nullptr : arena + offset; };
  return {at(place.weight), at(place.bias), at(place.score), has_general() ? at(place.balance) : nullptr,
          at(place.log_scale)};
}

void Mixture::repack_adapters() {
  ++version_;
  for (Layer& layer : layers_) {
    for (Group& group : layer.groups) {
      if (group.columns == 0) continue;
      backend_.pack_parameters(*group.a, 0, group.columns, adapters_.as<float>() + group.a_offset);
      for (size_t m = 0; m < group.b.size(); ++m) {
        if (group.b[m])
          backend_.pack_parameters(*group.b[m], 0, group.b[m]->rows(), adapters_.as<float>() + group.b_offset[m]);
      }
    }
  }
}

void Mixture::repack_routers() {
  ++version_;
  for (Layer& layer : layers_) {
    backend_.pack_parameters(*layer.router_weight, 0, router_rows(), routers_.as<float>() + layer.place.weight);
  }
}

float Mixture::router_value(int layer, int64_t offset) const {
  const Layer& place = layers_[static_cast<size_t>(layer)];
  const float* device =
      routers_ ? routers_.as<float>() + offset : place.router_values.as<float>() + (offset - place.place.weight);
  float value = 0;
  backend_.download(&value, device, sizeof(value));
  return value;
}

std::vector<float> Mixture::read(const ParameterSlice& slice) const {
  std::vector<float> values(static_cast<size_t>(slice.rows * slice.cols));
  const Buffer& arena = slice.router ? routers_ : adapters_;
  if (!arena) return slice.source ? widen(*slice.source) : values;
  for (int64_t row = 0; row < slice.rows; ++row) {
    backend_.download(values.data() + row * slice.cols, arena.as<float>() + slice.offset + row * slice.stride,
                      static_cast<size_t>(slice.cols) * sizeof(float));
  }
  return values;
}

}  // namespace at_moe
