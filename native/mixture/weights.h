// What the ops read of a mixture: device memory that may go and be made again, with the same bits.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "mixture/source.h"

namespace at_moe {

struct MixtureWeights {
  struct Group {
    std::unique_ptr<Weight> a;
    std::vector<std::unique_ptr<Weight>> b;  // per module of the group; null where nothing targets it
    Buffer gate_column, scale;
    AdapterStack stack;
  };
  struct Layer {
    std::array<Group, kLinearGroups> groups;
    std::unique_ptr<Weight> router_weight;
    Buffer router_values;  // the layer's part of the router arena, when there is no training
    RouterLayer router;
  };
  std::vector<Layer> layers;
};

}  // namespace at_moe
