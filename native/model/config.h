#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor_source.h"
#include "mixture/mixture.h"

namespace at_moe {

struct RopeScaling {
  enum class Type { kDefault, kLinear, kLlama3 } type = Type::kDefault;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;
};

// config.json in one spelling for llama, mistral, qwen2 and qwen3; lib/descriptors.ts ModelConfig.
struct ModelConfig {
  int64_t hidden_size = 0, num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, intermediate_size = 0;
  int64_t vocab_size = 0, max_position_embeddings = 0;
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  std::vector<int64_t> windows;  // per layer; 0 = all keys
  bool qk_norm = false, tie_word_embeddings = false;

  LayerShapes layer_shapes() const;
  std::vector<double> inverse_frequencies() const;  // [head_dim / 2]
};

}  // namespace at_moe
