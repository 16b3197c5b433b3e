// Which sequences run: continuous batching over one pool of KV pages.
//
// A sequence waits in the queue, then has a place in the batch. A step takes a row of every sequence that decodes and, as
// far as `step_tokens` goes, pieces of prompts; a prompt that is routed as a whole is read beside the steps, by units.
// When pages run out, they are taken from idle sessions first, then from sequences that wait for their reader, then from
// those of the lowest priority, the latest first: these go back to the queue and are replayed from their ids and their
// kept routing, which gives the same bits.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/contexts.h"
#include "engine/kv_pages.h"
#include "engine/prefix_cache.h"
#include "engine/queue.h"
#include "engine/residency.h"
#include "engine/sequence.h"
#include "model/decoder.h"

namespace at_moe {

struct Limits {
  int64_t max_batch = 0, context_length = 0, kv_tokens = 0, chunk_rows = 0;
  int64_t step_tokens = 0, prompt_tokens = 0;  // most rows of a step, and of one in which nobody decodes
  std::optional<int64_t> max_queue;
  bool prefix_cache = true;
  size_t host_kv_bytes = 0;
};

using RoutingMaker = std::function<std::shared_ptr<SequenceRouting>(const RoutingRequest&)>;

class Scheduler {
 public:
  using Clock = Scheduling::Clock;

  Scheduler(const Model& model, const Limits& limits, RoutingMaker make_routing, Residency& residency, EventSink& sink);

  // Fails unless there are ids and all are in the vocabulary.
  void check_ids(const std::vector<int32_t>& ids) const;
  // Fails with kQueueFull unless so many more sequences, of so many requests, may wait.
  void check_queue(int64_t requests, int64_t sequences);
  // Fails for requests that cannot be served. `constraint` holds each text to a grammar; or null.
  void add(const GenerateRequest& request, const std::shared_ptr<Constraint>& constraint);
  // Fails with kQueueFull as well.
  void add(ScoreRequest request);
  void cancel(int64_t sequence) { cancel(Kind::kGenerate, sequence); }
  void cancel_score(int64_t job) { cancel(Kind::kScore, job); }
  void read_tokens(int64_t sequence, int64_t tokens);
  void release_session(int64_t session) { contexts_.release(session); }
  void forget(const std::shared_ptr<Mixture>& mixture);
  void reject_all(const Failure& failure);

  // Nothing can be done before something new is heard, a mixture has been loaded, or a deadline passes.
  bool idle() const { return batch_.empty() && (queue_.empty() || held_up_); }
  Clock::time_point next_deadline() const { return next_deadline_; }
  bool decoding() const;
  // One step, and some units of the passes beside it.
  void step();

  EngineStats stats() const;
  const Limits& limits() const { return limits_; }
  KvPages& pages() { return pages_; }
  KvPool& pool() { return *pool_; }
  size_t workspace_bytes() const;
  int64_t pages_per_sequence() const { return KvPages::pages_of(limits_.context_length); }

 private:
  using Shared = std::shared_ptr<Sequence>;
  using Reason = DoneEvent::Reason;
  using Kind = Sequence::Kind;
  using Place = Sequence::Place;
  // Rows [computed, end) of a sequence in a pass.
  struct Part {
    Shared sequence;
    int64_t end = 0;
    bool samples = false;  // a token follows from its last row
  };
  // The sequences of a pass with their rows. Those that sample come first.
  struct Rows {
    std::vector<Part> parts;
    std::vector<SequenceRows> rows;
    std::deque<RoutingTrace> traces;  // `rows` points into it
    ForwardResult result;
    int64_t count() const;
  };
  struct WholePass {
    Rows rows;
    std::unique_ptr<Workspace> workspace;
    Pass pass;
  };
  struct Sampled {
    int32_t token;
    float log_prob;
  };

  // scheduler.cc
  Shared begin(const GenerateRequest& request, const std::shared_ptr<Constraint>& constraint);
  Shared begin(ScoreRequest request);
  void number_routing(Context& context, const RoutingRequest& request, int64_t instruction);
  void enter(const Shared& sequence);
  void cancel(Kind kind, int64_t id);
  void end(const Shared& sequence, Reason reason, const Failure& failure);
  bool ended(const Shared& sequence);
  void expire(Clock::time_point now);
  std::vector<Sampled> sample(const std::vector<Shared>& batch, const Matrix& logits);
  void accept(const Shared& sequence, Sampled sampled);
  void finish(const Shared& sequence, Reason reason, Failure failure = {});
  void tell(Sequence& sequence, Reason reason, Failure failure, int32_t stop_token = -1);
  void release(const Shared& sequence);

  // admission.cc
  void admit();
  void bring_mixtures();
  bool hold_mixture(Sequence& sequence);
  void put(const Shared& sequence, Sequence::Place place);
  bool hold_pages(const Shared& sequence);
  bool free_pages(const Sequence& wanting);
  Shared lowest(const std::vector<Shared>& among) const;
  void reuse_keys(Sequence& sequence);
  void drop_keys(Context& context);
  void restore_keys(Context& context);
  void preempt(Sequence& sequence);
  void park(const Shared& sequence);

  // decode.cc
  int64_t step_batch();
  Rows plan_step();
  void add_rows(Rows& rows, const Shared& sequence, int64_t end);
  void run(Rows rows);
  void take_results(Rows& rows);
  void take_rows(Rows& rows, size_t index);
  void take_samples(const std::vector<Shared>& batch, const Matrix& logits);

  // fork.cc
  static void add_siblings(Sequence& first, int64_t count);
  void fork(Sequence& first, const Matrix& logits);
  Context share(const Context& context);
  void own_last_page(Context& context);

  // prefill.cc
  void start_pass();
  std::unique_ptr<Workspace> workspace_for(int64_t rows);
  void step_passes(int64_t units);
  bool resume(WholePass& pass);
  void end_pass(std::unique_ptr<WholePass> ended);
  void drop_unwanted_pass();
  void fail_pass(std::unique_ptr<WholePass> failed, const Failure& failure);

  const Model& model_;
  Limits limits_;
  RoutingMaker make_routing_;
  Residency& residency_;
  EventSink& sink_;
  std::unique_ptr<KvPool> pool_;
  KvPages pages_;
  std::optional<HostPages> host_pages_;
  std::optional<PrefixCache> prefixes_;
  Contexts contexts_;
  Workspace step_workspace_;
  std::unique_ptr<Workspace> spare_workspace_;  // of a pass that has ended
  std::map<std::pair<Kind, int64_t>, Shared> live_;
  Queue queue_;
  bool held_up_ = false;  // all that wait do so for their mixtures
  std::vector<Shared> batch_, stalled_;
  std::deque<std::unique_ptr<WholePass>> passes_;  // the one whose turn it is first
  Clock::time_point next_deadline_ = Clock::time_point::max();
  int64_t arrivals_ = 0;
  EngineStats stats_;
};

}  // namespace at_moe
