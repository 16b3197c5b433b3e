// Which sequences run: continuous batching over one pool of KV pages.
//
// A sequence waits, is prefilled (alone or with others, between the decode steps of those before it), then takes part
// in every decode step until it ends. When the pool is full, idle sessions lose their keys first, then the sequence
// admitted last goes back to waiting and is replayed later from its ids and its kept routing.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/contexts.h"
#include "engine/kv_pages.h"
#include "engine/sequence.h"
#include "model/decoder.h"

namespace at_moe {

struct Limits {
  int64_t max_batch = 0, context_length = 0, kv_tokens = 0, step_tokens = 0, chunk_rows = 0;
};

using RoutingMaker = std::function<std::shared_ptr<SequenceRouting>(const RoutingRequest&)>;

class Scheduler {
 public:
  Scheduler(const Model& model, const Limits& limits, RoutingMaker make_routing, EventSink& sink);

  // Fails unless there are ids and all are in the vocabulary.
  void check_ids(const std::vector<int32_t>& ids) const;
  // Failures are told through the sink.
  void add(const GenerateRequest& request);
  void add(ScoreRequest request);
  void cancel(int64_t sequence);
  void cancel_score(int64_t job);
  void release_session(int64_t session) { contexts_.release(session); }
  void read_tokens(int64_t, int64_t) {}
  EngineStats stats() const;
  void reject_all(const Failure& failure);

  bool idle() const { return waiting_.empty() && active_.empty() && !prefill_; }
  bool decoding() const { return !active_.empty(); }
  // One decode step and one unit of a prefill.
  void step();

  const Limits& limits() const { return limits_; }
  KvPages& pages() { return pages_; }
  KvPool& pool() { return *pool_; }
  size_t workspace_bytes() const;
  int64_t pages_per_sequence() const { return KvPages::pages_of(limits_.context_length); }

 private:
  using Shared = std::shared_ptr<Sequence>;
  struct Prefill {
    std::vector<Shared> members;
    std::vector<SequenceRows> rows;
    std::deque<RoutingTrace> traces;  // rows point into it
    ForwardResult result;
    Pass pass;
  };
  struct Sampled {
    int32_t token;
    float log_prob;
  };

  Shared begin(const GenerateRequest& request);
  void cancel(Sequence::Kind kind, int64_t id);

  void start_prefill();
  std::unique_ptr<Prefill> gather_prefill();
  void open_pass(Prefill& prefill);
  void plan_rows(Prefill& prefill, Sequence& sequence, int64_t end);
  void step_prefill();
  void end_prefill();
  void after_prefill(Prefill& prefill, size_t index);
  void retry_alone(const std::vector<Shared>& members);

  void decode();
  void decode(const std::vector<Shared>& batch);
  bool hold_pages(Sequence& sequence);
  void give_way(const Shared& sequence);
  bool reclaim_waiting(const Shared& except);

  std::vector<Sampled> sample(const std::vector<Shared>& batch, const Matrix& logits);
  void accept(const Shared& sequence, Sampled sampled);
  void finish(const Shared& sequence, DoneEvent::Reason reason, Failure failure = {});
  void tell(Sequence& sequence, DoneEvent::Reason reason, Failure failure, int32_t stop_token = -1);
  void release(Sequence& sequence);

  const Model& model_;
  Limits limits_;
  RoutingMaker make_routing_;
  EventSink& sink_;
  std::unique_ptr<KvPool> pool_;
  KvPages pages_;
  Contexts contexts_;
  Workspace decode_workspace_;
  std::unique_ptr<Workspace> prefill_workspace_;  // grows to the longest pass
  std::deque<Shared> waiting_;
  std::vector<Shared> active_;
  std::unique_ptr<Prefill> prefill_;
  int64_t admissions_ = 0;
};

}  // namespace at_moe
