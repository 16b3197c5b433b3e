#include "engine/limits.h"

#include <algorithm>
#include <thread>

#include "core/status.h"

namespace at_moe {

namespace {

constexpr size_t kDefaultKvBytes = size_t{2} << 30;
constexpr size_t kDefaultHostKvBytes = size_t{1} << 30;  // where the pool is not in host memory
// Deliberately low: a unit that is too short costs little, one that is too long delays every decode step.
constexpr double kCpuFlopsPerThread = 2e10, kGpuFlops = 2e13;

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
  if (!limits.chunk_rows) {
    const bool cpu = backend.name() == "cpu";
    const double flops = cpu ? kCpuFlopsPerThread * std::max(1u, std::thread::hardware_concurrency()) : kGpuFlops;
    limits.chunk_rows = Workspace::suggested_chunk(config, flops);
  }
  limits.max_queue = options.max_queue;
  limits.prefix_cache = options.prefix_cache;
  limits.host_kv_bytes = options.host_kv_bytes.value_or(backend.name() == "cpu" ? 0 : kDefaultHostKvBytes);
  limits.step_tokens = options.step_tokens;
  if (!limits.step_tokens) limits.step_tokens = std::clamp<int64_t>(2 * limits.chunk_rows, 64, 1024);
  return limits;
}

}  // namespace at_moe
