// A mixture: the adapters of all experts stacked per layer and linear group, and the routers. One adapter alone is a mixture
// of one expert without a router. What the ops read (MixtureWeights) is attached while the mixture is on the device; it
// can be made again at any time from the tensors that were loaded, or from the trained values.
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
#include "mixture/weights.h"

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
  bool router = false;                   // which arena
  const TensorSource* source = nullptr;  // the values loaded; null: zeros
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
  size_t weights_bytes() const { return weights_bytes_; }  // of the weights, attached or not
  size_t device_bytes() const { return (weights_ ? weights_bytes_ : 0) + adapters_.bytes() + routers_.bytes(); }
  int64_t stack_columns(int layer, int group) const;  // S
  int64_t max_stack_columns() const;

  // Copies what lies in files to memory, since files may change before the weights are made again, and checks all values.
  void copy_to_memory();
  // Makes the weights, on any thread and with a backend of that thread; checks the values it reads, and fails with kAborted
  // when told to stop.
  std::unique_ptr<MixtureWeights> make_weights(Backend& backend, const std::atomic<bool>& stop) const;
  void attach(std::shared_ptr<MixtureWeights> weights) { weights_ = std::move(weights); }
  // Trained values go to host memory.
  void detach();

  // Of the weights, which must be attached.
  const AdapterStack* stack(int layer, int group) const;  // null when nothing targets the group
  const RouterLayer& router(int layer) const;

  // A host routing record for explicit weights. `alone`: λ = ρ = 1 and no general adapter.
  std::vector<float> explicit_record(int layer, const std::vector<float>& expert_weights, bool alone) const;

  // Training of a part, with the weights attached from here on. Its arena is made from the current values at the first call,
  // and those that were loaded are not asked for again.
  void enable_training(bool adapters, bool router);
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
  // Counts the changes of what the ops read.
  uint64_t version() const { return version_; }

  const std::vector<ParameterSlice>& slices() const { return slices_; }
  // Current values of a slice, row-major [rows, cols]: the trained ones, else the source's.
  std::vector<float> read(const ParameterSlice& slice) const;

 private:
  // One expert's ranks of one module; expert E is the general adapter.
  struct Block {
    const LoraSource* source = nullptr;
    int expert = 0;
    int64_t column = 0;  // of h
    size_t slice = 0;    // of A; that of B follows
  };
  struct Group {
    std::vector<std::vector<Block>> blocks;  // per module of the group
    int64_t columns = 0;                     // S
    int64_t a_offset = 0;                    // in the adapter arena
    int64_t inputs = 0;
    std::vector<int64_t> b_offset, ranks, outputs;  // per module: in the arena; rank_m; d_m
  };
  struct RouterPlace {  // of one layer in the router arena; -1: the layer has none
    int64_t weight = -1, bias = -1, score = -1, balance = -1, log_scale = -1;
    int64_t end = 0;
    size_t slices = 0;  // its first
  };
  struct Layer {
    std::array<Group, kLinearGroups> groups;
    RouterPlace place;
  };

  void plan_group(int layer, int group);
  void plan_router(int layer);
  // How an adapter's weight of so many inputs is held: of fewer than a block as numbers.
  Storage stored_as(int64_t inputs) const;
  size_t bytes_of(const Group& group) const;
  size_t router_bytes(const RouterPlace& place) const;
  void make_group(Backend& backend, const Group& group, MixtureWeights::Group& made) const;
  void make_router(Backend& backend, int layer, MixtureWeights::Layer& made) const;
  void bind_router(const RouterPlace& place, MixtureWeights::Layer& layer, const float* values) const;
  int64_t router_rows() const { return shape().groups + (source_.options.conditional ? shape().experts : 0); }
  std::vector<float> b_values(const Group& group, size_t module) const;  // B_m [d_m, rank_m]
  std::vector<float> router_layer_values(const RouterPlace& place) const;
  // Of a layer's λ or ρ that is learned.
  float router_value(const RouterPlace& place, int64_t offset) const;
  // What `read` gives while there is no arena on the device; on any thread.
  std::vector<float> host_values(const ParameterSlice& slice) const;
  // The same, of values that `storage` can hold; fails with kUnsupported.
  std::vector<float> host_values(const ParameterSlice& slice, Storage storage) const;
  std::vector<float> arena_values(bool router) const;
  void forget_source(bool router);

  Backend& backend_;
  LayerShapes shapes_;
  MixtureSource source_;
  std::vector<Layer> layers_;
  std::vector<ParameterSlice> slices_;
  Storage widest_ = Storage::f32;  // of the sources' types
  size_t weights_bytes_ = 0;
  std::shared_ptr<MixtureWeights> weights_;
  Buffer adapters_, routers_;                        // the arenas
  std::vector<float> host_adapters_, host_routers_;  // the same while there are no weights
  int64_t adapter_count_ = 0, router_count_ = 0;
  uint64_t version_ = 0;
};

}  // namespace at_moe
