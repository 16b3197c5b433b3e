// The routing of one sequence: where its rows get their gates from.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "mixture/mixture.h"

namespace at_moe {

struct SequenceRouting {
  enum class Mode {
    kBase,   // no adapters
    kToken,  // every row its own weights
    kPool,   // weights of the instruction rows of the next pass, then kFixed
    kFixed,  // `records`
  };
  Mode mode = Mode::kBase;
  std::shared_ptr<Mixture> mixture;  // null for kBase
  RouterOptions options;             // of the mixture, with the request's overrides
  RouterControls controls;
  // Tests: which groups and experts the rows of kToken keep, [L, rows, G+E] by position, instead of top-k and top-p.
  std::vector<uint8_t> selection;
  Buffer records;  // [L, width] f32 on the device; kPool fills it
  // kPool: the first rows of the pass that are instruction (inference: all of them).
  int64_t instruction_rows = 0;

  static std::shared_ptr<SequenceRouting> base();
  // By the mixture's scope.
  static std::shared_ptr<SequenceRouting> routed(Backend& backend, std::shared_ptr<Mixture> mixture,
                                                 RouterOptions options, RouterControls controls);
  // The same weights in every layer, one per expert; `alone`: λ = ρ = 1 and no general adapter.
  static std::shared_ptr<SequenceRouting> fixed(Backend& backend, std::shared_ptr<Mixture> mixture,
                                                const std::vector<float>& expert_weights, bool alone);
};

// The routing records of some rows, one layer after the other, on the host: [L, rows, width].
struct RoutingTrace {
  int64_t layers = 0, rows = 0, width = 0;
  std::vector<float> records;
};

}  // namespace at_moe
