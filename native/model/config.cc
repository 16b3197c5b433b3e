#include "model/config.h"

#include <cmath>
#include <numbers>

namespace at_moe {

LayerShapes ModelConfig::layer_shapes() const {
  LayerShapes shapes;
  shapes.layers = num_layers;
  shapes.hidden_size = hidden_size;
  const int64_t q = num_heads * head_dim, kv = num_kv_heads * head_dim;
  shapes.in_features = {hidden_size, hidden_size, hidden_size, q, hidden_size, hidden_size, intermediate_size};
  shapes.out_features = {q, kv, kv, hidden_size, intermediate_size, intermediate_size, hidden_size};
  return shapes;
}

// Llama 3's scaling, as in transformers' modeling_rope_utils: long wavelengths are stretched by `factor`, short ones are
// kept, those between are blended linearly in original_max / wavelength.
std::vector<double> ModelConfig::inverse_frequencies() const {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  const RopeScaling& scaling = rope_scaling;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (scaling.type == RopeScaling::Type::kLinear) frequency /= scaling.factor;
    if (scaling.type == RopeScaling::Type::kLlama3) {
      const double turns =
          static_cast<double>(scaling.original_max_position_embeddings) * frequency / (2 * std::numbers::pi);
      const double blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
      const double kept = turns < scaling.low_freq_factor ? 0.0 : turns > scaling.high_freq_factor ? 1.0 : blend;
      frequency *= kept + (1 - kept) / scaling.factor;
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

}  // namespace at_moe
