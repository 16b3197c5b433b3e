// One stage of the grouped router: the softmax over n scores, the selection, and the controls of a request.
#pragma once

#include <cstdint>

namespace at_moe {

// One stage over n entries: groups, or the experts of one group. Null pointers: no such control.
struct Stage {
  int32_t n = 0;
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 0;
  bool renormalize = true;
  const float* bias = nullptr;
  const uint8_t* denied = nullptr;
  const float* set = nullptr;

  bool selects() const { return (top_k > 0 && top_k < n) || (top_p > 0 && top_p < 1); }
};

// p = softmax of the scores after bias, denial (p = 0) and temperature; all 0 when every entry is denied.
void softmax(const Stage& stage, const float* score, float* p);

// q = the final weights of a stage from its softmax p. `frozen` [n] replaces the selection.
void finish(const Stage& stage, const float* p, const uint8_t* frozen, float* q);

}  // namespace at_moe
