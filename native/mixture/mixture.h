// A mixture on the device: the adapters of all experts stacked per layer and linear group, and the routers.
// One adapter alone is a mixture of one expert without a router.
//
// Trained values live in two f32 arenas, laid out as the stacks are so that a gradient is one matrix per product:
//   adapters: per layer and group  A_cat [S, d_in], then per module B_m [d_m, rank_m]
//   router:   per layer  weight [G+E, d] (static [G, d]), bias, score [E] (static), balance [1], scale [1] (learned)
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "mixture/source.h"

namespace at_moe {

// What the base model says about its layers.
struct LayerShapes {
  int64_t layers = 0;
  int64_t hidden_size = 0;
  std::array<int64_t, kModules> in_features{}, out_features{};
};

// A rectangle of an arena that belongs to one named tensor: element (r, c) at offset + r * stride + c.
struct ParameterSlice {
  std::string name;  // "experts.3.layers.0.self_attn.q_proj.lora_A", "general.layers…", "router.layers.0.group.weight"
  int64_t offset = 0, rows = 0, cols = 0, stride = 0;
  bool router = false;  // which arena
};

class Mixture {
 public:
  Mixture(Backend& backend, const LayerShapes& shapes, MixtureSource source);
  ~Mixture();
  Mixture(const Mixture&) = delete;
  Mixture& operator=(const Mixture&) = delete;

  const RouterShape& shape() const { return source_.shape; }
  const MixtureSource& source() const { return source_; }
  bool has_router() const { return source_.has_router; }
  bool has_general() const { return source_.general.has_value(); }
  int64_t layers() const { return shapes_.layers; }
  size_t device_bytes() const;
  int64_t stack_columns(int layer, int group) const;  // S
  int64_t max_stack_columns() const;

  const AdapterStack* stack(int layer, int group) const;  // null when nothing targets the group
  const RouterLayer& router(int layer) const;

  // A host routing record for explicit weights. `alone`: λ = ρ = 1 and no general adapter.
  std::vector<float> explicit_record(int layer, const std::vector<float>& expert_weights, bool alone) const;

  // Training. The arenas are made from the current values at the first call.
  void enable_training();
  bool trainable() const { return static_cast<bool>(adapters_); }
  float* adapter_parameters() const { return adapters_.as<float>(); }
  float* router_parameters() const { return routers_.as<float>(); }
  int64_t adapter_count() const { return adapter_count_; }
  int64_t router_count() const { return router_count_; }
  // Where the gradients of a layer lie, given the start of a gradient arena of the same layout.
  AdapterGradients adapter_gradients(int layer, int group, float* arena) const;
  struct RouterGradients {
    float *weight = nullptr, *bias = nullptr, *score = nullptr, *balance = nullptr, *log_scale = nullptr;
  };
  RouterGradients router_gradients(int layer, float* arena) const;
  // Packs the arenas into what the ops read, after an update.
  void repack_adapters();
  void repack_routers();

  const std::vector<ParameterSlice>& slices() const { return slices_; }
  // Current values of a slice, row-major [rows, cols]: the trained ones, else the source's.
  std::vector<float> read(const ParameterSlice& slice) const;

 private:
  struct Block;   // one expert's ranks of one module
  struct Group;   // one linear group of one layer
  struct Layer;

  void plan();
  void load_group(Layer& layer, int layer_index, int group);
  void load_router(Layer& layer, int layer_index);
  void add_router_slices(int layer_index, Layer& layer);
  std::vector<float> router_values(int layer_index) const;

  Backend& backend_;
  LayerShapes shapes_;
  MixtureSource source_;
  std::vector<Layer> layer_;
  std::vector<ParameterSlice> slices_;
  Buffer adapters_, routers_;
  int64_t adapter_count_ = 0, router_count_ = 0;
};

}  // namespace at_moe
