#include "engine/limits.h"

#include <algorithm>

#include "core/status.h"

namespace at_moe {

namespace {

constexpr size_t kDefaultKvBytes = size_t{2} << 30;
constexpr size_t kDefaultHostKvBytes = size_t{1} << 30;  // where the pool is not in host memory
// The longest that a unit of a pass should take, and the prompts' share of a step: both delay who decodes.
constexpr double kUnitSeconds = 0.055, kStepSeconds = 0.1;

// Weights of a layer's linears: the multiply-adds of a row.
double layer_weights(const ModelConfig& config) {
  const LayerShapes shapes = config.layer_shapes();
  double weights = 0;
  for (size_t module = 0; module < kModules; ++module)
    weights += static_cast<double>(shapes.in_features[module] * shapes.out_features[module]);
  return weights;
}

}  // namespace

Limits plan_limits(const Backend& backend, const ModelConfig& config, const LoadOptions& options) {
  Limits limits;
  limits.max_batch = options.max_batch;
  const int64_t most = config.max_position_embeddings;
  limits.context_length = options.context_length ? std::min(options.context_length, most) : most;
  limits.kv_tokens = options.kv_tokens;
  if (!limits.kv_tokens) {
    const size_t page = backend.kv_bytes({config.num_layers, 1, config.num_kv_heads, config.head_dim});
    const int64_t affordable = static_cast<int64_t>(kDefaultKvBytes / page) * kPageTokens;
    const int64_t least = options.context_length ? limits.context_length : kPageTokens;
    limits.kv_tokens = std::max(std::min(limits.context_length * limits.max_batch, affordable), least);
  }
  limits.kv_tokens = KvPages::pages_of(limits.kv_tokens) * kPageTokens;
  limits.context_length = std::min(limits.context_length, limits.kv_tokens);
  limits.chunk_rows = options.chunk_rows;
  const double rows_per_second = backend.multiply_rate() / layer_weights(config);  // through one layer
  if (!limits.chunk_rows) {
    const int64_t rows = static_cast<int64_t>(kUnitSeconds * rows_per_second) / 16 * 16;
    limits.chunk_rows = std::clamp<int64_t>(rows, 64, 512);
  }
  limits.max_queue = options.max_queue;
  limits.prefix_cache = options.prefix_cache;
  limits.host_kv_bytes = options.host_kv_bytes.value_or(backend.name() == "cpu" ? 0 : kDefaultHostKvBytes);
  limits.step_tokens = limits.prompt_tokens = options.step_tokens;
  if (!limits.step_tokens) {
    const int64_t rows = static_cast<int64_t>(kStepSeconds * rows_per_second) / config.num_layers;
    limits.step_tokens = std::clamp<int64_t>(rows, 64, 1024);
    limits.prompt_tokens = std::max(limits.step_tokens, limits.chunk_rows);
  }
  return limits;
}

}  // namespace at_moe
