// One token per row. Order as in transformers: repetition penalty, bans and the allowed set, temperature, top-k, top-p,
// min-p, then the draw u = uniform(philox(seed, stream 0, draw)) over the kept entries in descending order of probability,
// ties by lower index.
// Temperature 0: argmax, ties to the lower index.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"

namespace at_moe {

struct SamplingRow {
  float temperature = 0;
  int32_t top_k = 0;             // 0 = off
  float top_p = 1;               // 1 = off
  float min_p = 0;               // 0 = off
  float repetition_penalty = 1;  // 1 = off; over `history`
  uint64_t seed = 0, draw = 0;
  const int32_t* history = nullptr;  // host, prompt and generated ids
  int64_t history_length = 0;
  const int32_t* banned = nullptr;  // host, ids never sampled
  int64_t banned_length = 0;
  const uint32_t* allowed = nullptr;  // host, [ceil(V / 32)]: bit i % 32 of word i / 32 for token i; null: all
};

// A row without a finite logit to draw from, be it that none is allowed, fails with kNotFinite.
struct Sampling {
  Matrix logits;                      // [B, V] f32; unchanged
  std::span<const SamplingRow> rows;  // host
  int32_t* tokens = nullptr;          // [B] host, ready on return
  float* log_probs = nullptr;         // [B] host: log softmax of the raw logits, of all tokens, at the token; or null
};

}  // namespace at_moe
