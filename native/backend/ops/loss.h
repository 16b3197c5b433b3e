// Cross-entropy and divergence over a chunk of logit rows; logits become their gradient in place.
//   loss_n = logsumexp(l_n) - l_n[label_n];  kl_n = Σ_v p_base (log p_base - log p)
//   dl_n = weight_n (softmax(l_n) - onehot) + kl_weight_n (softmax(l_n) - softmax(base_n))
#pragma once

#include <cstdint>

#include "core/matrix.h"

namespace at_moe {

struct CrossEntropy {
  Matrix logits;  // [N, V] f32
  // [N] device; -100: no label, loss 0. Any other outside of the vocabulary: an error, or a loss of NaN where the host
  // cannot see labels without waiting.
  const int32_t* labels = nullptr;
  const float* weight = nullptr;     // [N] device: factor of the gradient; null = forward only, logits stay
  Matrix base_logits;                // [N, V] f32 or empty
  const float* kl_weight = nullptr;  // [N] device or null
  float* loss = nullptr;             // [N] device, unweighted
  float* kl = nullptr;               // [N] device, unweighted, or null
};

}  // namespace at_moe
