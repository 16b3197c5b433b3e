// What the engine tells: events of sequences, progress, and the end of every job.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "backend/probe.h"
#include "core/status.h"
#include "engine/requests.h"
#include "model/routing.h"
#include "training/trainer.h"

namespace at_moe {

struct Failure {
  Code code = Code::kInternal;
  std::string message;
};

Failure failure_of(const std::exception_ptr& error);

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0;
  int64_t cached_tokens = 0;   // of a session, whose keys were still there
  int64_t context_tokens = 0;  // held at the end
};

struct TokenEvent {
  int64_t sequence = 0;
  int32_t token = 0;
  float log_prob = 0;
};

struct TraceEvent {
  int64_t sequence = 0;
  int64_t position = 0;  // of the first row
  RoutingTrace trace;
};

struct DoneEvent {
  enum class Reason { kStop, kLength, kCancelled, kError };
  int64_t sequence = 0;
  Reason reason = Reason::kStop;
  int32_t stop_token = -1;
  Usage usage;
  Failure failure;
};

struct ProgressEvent {
  int64_t job = 0;
  size_t done = 0, total = 0;
};

struct ModelInfo {
  std::string device;
  Storage weights = Storage::f32;
  std::optional<Storage> expert_weights;  // of all mixtures, if it was given
  int64_t context_length = 0, kv_tokens = 0, max_batch = 0;
  bool mapped = false;  // weights are read from a mapped file of packed weights
};

struct MixtureInfo {
  int64_t mixture = 0;
  size_t device_bytes = 0;
  int64_t record_width = 0;
};

struct TrainerInfo {
  int64_t trainer = 0;
};

struct TrainerState {
  int64_t step = 0;
  std::vector<NamedValues> tensors;
};

struct MemoryStatement {
  size_t model = 0, mapped = 0, kv = 0, workspaces = 0, mixtures = 0, trainers = 0;
  int64_t kv_free_tokens = 0, kv_tokens = 0;
};

struct EngineStats {
  int64_t running = 0, queued = 0, stalled = 0, steps = 0, batch_size = 0;
  int64_t pages_used = 0, pages_cached = 0, pages_free = 0, pages_on_host = 0;
  int64_t looked_up_tokens = 0, hit_tokens = 0, prompt_tokens = 0, completion_tokens = 0;
  int64_t preemptions = 0, restored_tokens = 0;
  int64_t requests = 0, refused = 0, expired = 0;
  size_t adapter_budget = 0, adapter_bytes = 0, adapter_peak_bytes = 0;
  int64_t adapters_resident = 0, adapters_pinned = 0;
  int64_t adapter_hits = 0, adapter_misses = 0, adapter_loads = 0, adapter_evictions = 0;
};

struct BenchResult {
  std::vector<std::vector<double>> seconds;  // of each step, by routing
  DeviceWork work;                           // of all these steps
};

struct QuantizedTensor {
  std::vector<uint8_t> values, scales;  // the bytes of Q8Rows
};

struct PackedSections {
  std::map<std::string, double> sizes;  // bytes of each packed weight, by name
};

struct ProbeResult {
  double read_rate = 0, fma_rate = 0, product_rate = 0;  // bytes, multiply-adds per second
};

using JobResult =
    std::variant<std::monostate, Failure, ModelInfo, MixtureInfo, TrainerInfo, MicroBatchResult, StepResult,
                 std::vector<NamedValues>, TrainerState, std::vector<float>, MemoryStatement, EngineStats, BenchResult,
                 ProbeResult, FileCopy, QuantizedTensor, PackedSections, std::vector<uint8_t>>;

struct JobDone {
  int64_t job = 0;
  JobResult result;
};

using Event = std::variant<TokenEvent, TraceEvent, DoneEvent, ProgressEvent, JobDone>;

// Called on engine threads, and on the caller's thread for jobs that come after the end.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void push(Event event) = 0;
};

// Tells the end of each of a request's sequences.
void refuse(EventSink& sink, const GenerateRequest& request, const Failure& failure);

}  // namespace at_moe
