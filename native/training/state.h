// What a trainer owns.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "training/tape.h"
#include "training/trainer.h"

namespace at_moe {

// One run of trained parameters with its gradient and moments.
struct Arena {
  std::string name;  // "adapters", "routers", "base"
  float* parameters = nullptr;
  int64_t count = 0;
  Buffer gradient, moment1, moment2;

  float* gradients() const { return gradient.as<float>(); }
};

// Offsets of the base's parameters in its arena, -1 where the model has none.
struct BaseOffsets {
  struct Layer {
    std::array<int64_t, kModules> weight{}, bias{};
    int64_t input_norm = -1, post_norm = -1, q_norm = -1, k_norm = -1;
  };
  explicit BaseOffsets(const Model& model);
  std::vector<Layer> layers;
  int64_t embedding = -1, head = -1, final_norm = -1;
};

struct Trainer::State {
  State(Model& model, std::shared_ptr<Mixture> mixture, TrainOptions options);

  bool trains_adapters() const {
    return options.target == TrainTarget::kAdapter || options.target == TrainTarget::kJoint;
  }
  bool trains_router() const { return options.target == TrainTarget::kRouter || options.target == TrainTarget::kJoint; }
  bool trains_base() const { return options.target == TrainTarget::kBase; }
  // Start of the gradient of a base parameter; null when it is not trained.
  float* base_gradient(int64_t offset) const {
    return trains_base() && offset >= 0 ? base.gradients() + offset : nullptr;
  }
  // The factor of the losses, and so of the gradients until the next update: it keeps gradients of 16-bit range in range.
  // The first micro-batch of a step decides for the others; `largest` is the factor of its largest row.
  float scale_losses(double largest);
  // A tape for `rows` and `sequences`, made anew when the last one is too small.
  Tape& tape_for(int64_t rows, int64_t sequences);
  std::vector<Arena*> arenas();

  Model& model;
  Backend& backend;
  std::shared_ptr<Mixture> mixture;
  TrainOptions options;
  Arena adapters, routers, base;
  std::unique_ptr<BaseOffsets> offsets;
  std::unique_ptr<Tape> tape;
  int64_t step = 0;
  float loss_scale = 0;                       // 0: no gradients since the last update
  int64_t step_rows = 0, step_sequences = 0;  // of the micro-batches since the last update
};

}  // namespace at_moe
