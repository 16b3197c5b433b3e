// Training steps: an adapter alone, the router, adapters and router, or all base parameters. Micro-batches accumulate
// gradients; finish_step clips, updates and packs. Every micro-batch is a pass (units of one layer and one run of rows).
// Sources: mixture-spec sections 4 and 5.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/pass.h"
#include "model/model.h"
#include "model/routing.h"

namespace at_moe {

enum class TrainTarget {
  kAdapter,  // the mixture's one expert, at weight 1 (a mixture without a router)
  kRouter,   // router, learned balance and scale; adapters frozen
  kJoint,    // router and all adapters
  kBase,     // all parameters of the base, no mixture
};

struct TrainOptions {
  TrainTarget target = TrainTarget::kAdapter;
  RouterCoefficients coefficients;
  float base_kl = 0;       // weight of KL(base ‖ model) over the rows with kl_mask
  float scale_min = 1;     // expert scale drawn from U(scale_min, 1) per example; 1 = off
  float dropout = 0;       // of the adapters' input
  bool recompute = false;  // keep only the layer inputs, run each layer's forward again in backward
  uint64_t seed = 0;
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0, max_grad_norm = 1;  // max_grad_norm 0 = off
};

struct MicroBatch {
  std::vector<int32_t> ids;             // [N]
  std::vector<int32_t> offsets;         // [B+1]
  std::vector<int32_t> prompt_lengths;  // [B] instruction tokens of each sequence
  std::vector<int32_t> labels;          // [N]: id to be predicted at the row (the next token), -100 = none
  std::vector<float> loss_weights;      // [N] or empty (1 where there is a label)
  std::vector<uint8_t> kl_mask;         // [N] or empty
  std::vector<float> group_target;      // [B, G] t_g or empty
  std::vector<float> expert_target;     // [B, E] t_{e|g} or empty
  std::vector<int64_t> example_ids;     // [B] for the draws that are per example, or empty
  std::vector<uint8_t> selection;       // tests: [L, N, G+E] what the router keeps (token scope), or empty
  // Of the whole optimiser step, so that accumulated micro-batches add up to the step's mean losses.
  double step_loss_weight = 0;  // Σ loss_weights of labelled rows
  double step_kl_rows = 0;
  double step_tokens = 0;
};

struct MicroBatchResult {
  double loss = 0;                                    // this micro-batch's share of the step's mean cross-entropy
  double kl = 0;                                      // share of the mean divergence, unweighted
  std::array<double, kRouterLosses> router_losses{};  // shares of the mean over layers, unweighted
  double auxiliary = 0;                               // share of Σ coefficient * loss, base_kl included
  int64_t bad_sequence = -1;                          // first sequence whose loss is not finite
};

struct StepResult {
  double gradient_norm = 0;  // before clipping
};

struct NamedValues {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

class Trainer {
 public:
  // `mixture` is null for kBase. Enables training on it (kAdapter, kRouter, kJoint) or needs a trainable model (kBase).
  Trainer(Model& model, std::shared_ptr<Mixture> mixture, TrainOptions options);
  ~Trainer();

  // Forward, loss, backward; gradients are added up. `result` must outlive the pass.
  Pass micro_batch(const MicroBatch& batch, MicroBatchResult& result);
  // Forward and loss alone.
  Pass evaluate(const MicroBatch& batch, MicroBatchResult& result);
  // Clips, AdamW, packs, clears the gradients. Rejects a gradient norm that is not finite with kNotFinite, before the update.
  Pass finish_step(float learning_rate, StepResult& result);
  void discard_gradients();

  int64_t step() const;  // updates done
  size_t device_bytes() const;
  // Optimiser state for resuming bit for bit: parameters and both moments of the trained arenas, with the step.
  std::vector<NamedValues> state() const;
  void restore(const std::vector<NamedValues>& state, int64_t step);
  // Accumulated gradients by tensor name, for tests and golden cases.
  std::vector<NamedValues> gradients() const;
  // The base parameters (kBase), by Hugging Face name.
  std::vector<NamedValues> base_values() const;

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace at_moe
