// What the engine is asked for: plain data, already converted and checked for types.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backend/ops/router.h"
#include "core/tensor_source.h"
#include "model/config.h"

namespace at_moe {

struct EngineOptions {
  std::string device = "auto";
  int threads = 0;            // CPU: 0 = physical cores
  std::vector<int> affinity;  // CPU: see BackendOptions
};

struct LoadOptions {
  Storage weights = Storage::f32;         // of the linears and the head
  std::optional<Storage> expert_weights;  // of all mixtures; default: the widest of their sources
  bool trainable = false;
  int64_t max_batch = 16;
  int64_t context_length = 0;  // 0 = the model's, or what the KV cache holds
  int64_t kv_tokens = 0;       // 0 = by the default budget
  int64_t step_tokens = 0;     // 0 = by the speed of the device
  int64_t chunk_rows = 0;      // 0 = by the speed of the device
  std::optional<int64_t> max_queue;
  bool prefix_cache = true;
  std::optional<size_t> host_kv_bytes;
  std::optional<size_t> adapter_bytes;
};

struct LoadRequest {
  ModelConfig config;
  std::map<std::string, TensorSource> tensors;
  std::optional<PackedSource> packed;   // weights and embedding, instead of those of the tensors
  std::optional<uint64_t> random_seed;  // instead of tensors
  LoadOptions options;
};

struct RoutingRequest {
  enum class Kind { kBase, kMixture, kFixed } kind = Kind::kBase;
  int64_t mixture = 0;
  std::optional<RouterOptions> options;  // kMixture: instead of the mixture's own
  RouterControls controls;               // kMixture
  std::vector<uint8_t> selection;        // kMixture, tests: see SequenceRouting
  std::vector<float> weights;            // kFixed
  bool alone = false;                    // kFixed
};

struct SamplingRequest {
  float temperature = 0;
  int32_t top_k = 0;
  float top_p = 1, min_p = 0, repetition_penalty = 1;
  uint64_t seed = 0;
};

struct Scheduling {
  using Clock = std::chrono::steady_clock;
  int64_t priority = 0;  // higher ones first
  Clock::time_point deadline = Clock::time_point::max();
};

struct GenerateRequest {
  int64_t sequence = 0;  // of the first of n
  int64_t n = 1;
  Scheduling scheduling;
  std::optional<int64_t> max_unread;
  std::vector<int32_t> ids;
  int64_t max_tokens = 0;
  std::vector<int32_t> stop_tokens, banned_tokens;
  SamplingRequest sampling;
  RoutingRequest routing;
  bool trace = false, log_probs = false;
  std::optional<int64_t> session;
  std::optional<int64_t> keep;  // tokens of the session's context that stay
  bool reroute = false;
  std::optional<int64_t> grammar;
};

struct ScoreRequest {
  int64_t job = 0;
  Scheduling scheduling;
  std::vector<int32_t> ids;
  int64_t first = 1;
  RoutingRequest routing;
};

struct MergeRequest {
  int64_t mixture = 0;
  TensorSource base;
  int layer = 0, module = 0;
  std::vector<float> weights;
  bool alone = false;
};

struct BenchRequest {
  bool decode = true;
  int64_t rows = 1, context = 1, steps = 1;
  std::vector<RoutingRequest> routings;
  bool interleave = true;
};

}  // namespace at_moe
