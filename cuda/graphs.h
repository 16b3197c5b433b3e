// The graphs of steps. A step is known by its launches, which depend on the model and the bucket of rows alone; the second
// step that looks like an earlier one is captured, and replayed from then on. AT_MOE_CUDA_GRAPH=off turns this off.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "cuda/phases.h"
#include "cuda/runtime.h"

namespace at_moe::cuda {

struct StepLaunch {
  StepKernel kernel = nullptr;
  LaunchShape shape;
};

class Graphs {
 public:
  Graphs(Runtime& runtime, DeviceWork& work);

  // The graph of these launches, which `enqueue` makes; null: they are to be made one by one.
  const Graph* find(const std::vector<StepLaunch>& launches, const std::function<void()>& enqueue);

 private:
  static constexpr size_t kMost = 32;   // graphs kept
  static constexpr size_t kFewest = 4;  // launches that are worth a graph

  struct Step {
    std::vector<StepLaunch> launches;
    std::unique_ptr<Graph> graph;
    bool captured = false;  // or tried to be
    uint64_t used = 0;
  };

  Runtime& runtime_;
  DeviceWork& work_;
  bool enabled_;
  uint64_t clock_ = 0;
  std::vector<Step> steps_;
};

}  // namespace at_moe::cuda
