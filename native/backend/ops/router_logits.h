// The product of a router: raw scores of groups and experts. C = G+E columns (static: G), N rows of d inputs.
//   logits = x Wᵀ + b;   dx += dlogits W;   dW += dlogitsᵀ x;   db += Σ_n dlogits
// Scores decide what is selected, so weights, sums and gradients are f32 whatever the activation type; x alone is of that
// type. An element's order of summation depends on d (logits) or C (dx) alone; dW and db take the rows in ascending order
// in runs of kGradientRun, as in linear.h.
#pragma once

#include <span>

#include "backend/ops/router.h"
#include "core/matrix.h"

namespace at_moe {

struct RouterLogits {
  struct Segment {
    int64_t begin = 0, end = 0;  // rows of x and logits
    const RouterLayer* layer = nullptr;
  };
  Matrix x;       // [N, d]
  Matrix logits;  // [N, >= C] f32
  std::span<const Segment> segments;
};

struct RouterLogitsBackward {
  const RouterLayer* layer = nullptr;
  Matrix x;                  // [N, d] of the forward
  Matrix dlogits;            // [N, >= C] f32
  Matrix dx;                 // [N, d] f32, added to
  float* dweight = nullptr;  // [C, d] added to
  float* dbias = nullptr;    // [C] added to
};

}  // namespace at_moe
