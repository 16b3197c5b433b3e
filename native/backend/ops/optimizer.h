// AdamW as torch.optim.AdamW over one contiguous arena:
//   g' = g clip;  p -= lr wd p;  m = β1 m + (1-β1) g';  v = β2 v + (1-β2) g'²;  p -= lr (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + eps)
#pragma once

#include <cstdint>

namespace at_moe {

struct AdamW {
  float* parameter = nullptr;  // [n] each, device, f32
  const float* gradient = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
  int64_t count = 0;
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  float gradient_scale = 1;  // the clip factor
  int64_t step = 1;          // t, from 1
};

// Sum of squares in double over fixed blocks, blocks in order.
struct SquaredNorm {
  const float* values = nullptr;
  int64_t count = 0;
};

}  // namespace at_moe
