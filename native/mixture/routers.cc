// The routers of a mixture and the parameter arenas: their plan, training, packing, reading back.
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/q8.h"
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
  place.slices = slices_.size();
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

std::vector<float> Mixture::router_layer_values(const RouterPlace& place) const {
  std::vector<float> values(static_cast<size_t>(place.end - place.weight));
  for (size_t i = place.slices; i < slices_.size() && slices_[i].router && slices_[i].offset < place.end; ++i) {
    const std::vector<float> tensor = host_values(slices_[i]);
    std::copy(tensor.begin(), tensor.end(), values.begin() + (slices_[i].offset - place.weight));
  }
  return values;
}

std::vector<float> Mixture::arena_values(bool router) const {
  std::vector<float> values(static_cast<size_t>(std::max<int64_t>(router ? router_count_ : adapter_count_, 1)));
  for (const ParameterSlice& slice : slices_) {
    if (slice.router != router) continue;
    const std::vector<float> tensor = host_values(slice);
    for (int64_t row = 0; row < slice.rows; ++row) {
      std::copy_n(tensor.begin() + row * slice.cols, slice.cols, values.begin() + slice.offset + row * slice.stride);
    }
  }
  return values;
}

void Mixture::enable_training(bool adapters, bool router) {
  const auto make_arena = [this](bool of_router, std::vector<float>& host) {
    const std::vector<float> values = host.empty() ? arena_values(of_router) : std::exchange(host, {});
    Buffer arena = backend_.allocate(values.size() * sizeof(float));
    backend_.upload(arena.as<void>(), values.data(), values.size() * sizeof(float));
    forget_source(of_router);
    return arena;
  };
  if (adapters && !adapters_) adapters_ = make_arena(false, host_adapters_);
  if (!router || routers_) return;
  routers_ = make_arena(true, host_routers_);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const RouterPlace& place = layers_[layer].place;
    bind_router(place, weights_->layers[layer], routers_.as<float>() + place.weight);
  }
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
  const float* values = adapters_.as<float>();
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (size_t g = 0; g < kLinearGroups; ++g) {
      const Group& group = layers_[layer].groups[g];
      const MixtureWeights::Group& made = weights_->layers[layer].groups[g];
      if (group.columns == 0) continue;
      backend_.pack_parameters(*made.a, 0, group.columns, values + group.a_offset);
      for (size_t m = 0; m < made.b.size(); ++m) {
        if (made.b[m]) backend_.pack_parameters(*made.b[m], 0, group.outputs[m], values + group.b_offset[m]);
      }
    }
  }
}

void Mixture::repack_routers() {
  ++version_;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const float* values = routers_.as<float>() + layers_[layer].place.weight;
    backend_.pack_parameters(*weights_->layers[layer].router_weight, 0, router_rows(), values);
  }
}

float Mixture::router_value(const RouterPlace& place, int64_t offset) const {
  const auto slice = std::find_if(slices_.begin() + static_cast<std::ptrdiff_t>(place.slices), slices_.end(),
                                  [offset](const ParameterSlice& one) { return one.offset == offset; });
  return read(*slice).front();
}

std::vector<float> Mixture::host_values(const ParameterSlice& slice) const {
  const std::vector<float>& arena = slice.router ? host_routers_ : host_adapters_;
  if (arena.empty() && slice.source) return widen(*slice.source);
  std::vector<float> values(static_cast<size_t>(slice.rows * slice.cols));
  if (arena.empty()) return values;
  for (int64_t row = 0; row < slice.rows; ++row) {
    const auto from = arena.begin() + slice.offset + row * slice.stride;
    std::copy_n(from, slice.cols, values.begin() + row * slice.cols);
  }
  return values;
}

std::vector<float> Mixture::host_values(const ParameterSlice& slice, Storage storage) const {
  std::vector<float> values = host_values(slice);
  const float most = largest_stored(storage);
  if (most == std::numeric_limits<float>::max()) return values;
  const auto bad = std::find_if(values.begin(), values.end(), [most](float value) { return std::abs(value) > most; });
  if (bad != values.end()) {
    fail(Code::kUnsupported, "tensor ", slice.name, " has the value ", *bad, " at element ", bad - values.begin(),
         ", beyond the largest that ", name_of(storage), " can hold, ", most);
  }
  return values;
}

std::vector<float> Mixture::read(const ParameterSlice& slice) const {
  const Buffer& arena = slice.router ? routers_ : adapters_;
  if (!arena) return host_values(slice);
  std::vector<float> values(static_cast<size_t>(slice.rows * slice.cols));
  for (int64_t row = 0; row < slice.rows; ++row) {
    backend_.download(values.data() + row * slice.cols, arena.as<float>() + slice.offset + row * slice.stride,
                      static_cast<size_t>(slice.cols) * sizeof(float));
  }
  return values;
}

}  // namespace at_moe
