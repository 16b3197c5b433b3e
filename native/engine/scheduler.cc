#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

#include "core/status.h"

namespace at_moe {

namespace {

using Reason = DoneEvent::Reason;

KvPool::Shape pool_shape(const ModelConfig& config, int64_t tokens) {
  return {config.num_layers, KvPages::pages_of(tokens), config.num_kv_heads, config.head_dim};
}

}  // namespace

Scheduler::Scheduler(const Model& model, const Limits& limits, RoutingMaker make_routing, EventSink& sink)
    : model_(model),
      limits_(limits),
      make_routing_(std::move(make_routing)),
      sink_(sink),
      pool_(model.backend().create_kv(pool_shape(model.config(), limits.kv_tokens))),
      pages_(KvPages::pages_of(limits.kv_tokens)),
      contexts_(pages_),
      decode_workspace_(model, limits.max_batch, limits.max_batch, pages_per_sequence(), limits.max_batch) {}

size_t Scheduler::workspace_bytes() const {
  return decode_workspace_.bytes() + (prefill_workspace_ ? prefill_workspace_->bytes() : 0);
}

void Scheduler::check_ids(const std::vector<int32_t>& ids) const {
  if (ids.empty()) fail(Code::kMismatch, "there are no token ids");
  for (int32_t id : ids) {
    if (id >= 0 && id < model_.config().vocab_size) continue;
    fail(Code::kMismatch, "token id ", id, " is not in the vocabulary of ", model_.config().vocab_size);
  }
}

Scheduler::Shared Scheduler::begin(const GenerateRequest& request) {
  check_ids(request.ids);
  auto sequence = std::make_shared<Sequence>();
  const Context* old = request.session ? contexts_.find(*request.session) : nullptr;
  const int64_t kept = old ? std::min(request.keep.value_or(old->size()), old->size()) : 0;
  const int64_t size = kept + static_cast<int64_t>(request.ids.size());
  if (size + (request.max_tokens > 0) > limits_.context_length) {
    fail(Code::kContextLength, "the prompt has ", size, " tokens, the context holds ", limits_.context_length);
  }
  const bool own_routing = kept == 0 || request.reroute;
  auto routing = own_routing ? make_routing_(request.routing) : nullptr;
  if (request.session) {
    sequence->session = *request.session;
    sequence->context = contexts_.take(*request.session);
  }
  Context& context = sequence->context;
  context.truncate(kept);
  pages_.shrink(context.pages, context.computed);
  if (routing) context.spans.push_back({kept, std::move(routing)});
  context.ids.insert(context.ids.end(), request.ids.begin(), request.ids.end());
  sequence->id = request.sequence;
  sequence->usage.prompt_tokens = static_cast<int64_t>(request.ids.size());
  sequence->usage.cached_tokens = context.computed;
  sequence->limit = std::min(size + request.max_tokens, limits_.context_length);
  sequence->max_tokens = request.max_tokens;
  sequence->trace = request.trace;
  sequence->traced = request.trace ? kept : 0;
  for (RoutingSpan& span : context.spans) span.traced = false;
  sequence->log_probs = request.log_probs;
  sequence->stop_tokens = request.stop_tokens;
  sequence->banned_tokens = request.banned_tokens;
  sequence->sampling = request.sampling;
  if (request.constraint) sequence->matcher = std::make_unique<Matcher>(request.constraint);
  return sequence;
}

void Scheduler::add(const GenerateRequest& request) {
  try {
    waiting_.push_back(begin(request));
  } catch (...) {
    DoneEvent done;
    done.sequence = request.sequence;
    done.reason = Reason::kError;
    done.usage.prompt_tokens = static_cast<int64_t>(request.ids.size());
    done.failure = failure_of(std::current_exception());
    sink_.push(std::move(done));
  }
}

void Scheduler::add(ScoreRequest request) {
  try {
    check_ids(request.ids);
    const int64_t size = static_cast<int64_t>(request.ids.size());
    if (request.first < 1 || request.first >= size)
      fail(Code::kMismatch, "there is nothing to score from id ", request.first, " of ", size);
    if (size - 1 > limits_.context_length) {
      fail(Code::kContextLength, "the text has ", size, " tokens, the context holds ", limits_.context_length);
    }
    auto sequence = std::make_shared<Sequence>();
    sequence->kind = Sequence::Kind::kScore;
    sequence->id = request.job;
    sequence->first = request.first;
    sequence->context.spans.push_back({0, make_routing_(request.routing)});
    sequence->context.ids = std::move(request.ids);
    waiting_.push_back(std::move(sequence));
  } catch (...) {
    sink_.push(JobDone{request.job, failure_of(std::current_exception())});
  }
}

void Scheduler::cancel(int64_t sequence) { cancel(Sequence::Kind::kGenerate, sequence); }
void Scheduler::cancel_score(int64_t job) { cancel(Sequence::Kind::kScore, job); }

void Scheduler::cancel(Sequence::Kind kind, int64_t id) {
  auto is = [&](const Shared& sequence) { return sequence->kind == kind && sequence->id == id && !sequence->done; };
  const Failure aborted{Code::kAborted, "the job was aborted"};
  auto remove = [&](auto& from) {
    const auto at = std::find_if(from.begin(), from.end(), is);
    if (at == from.end()) return;
    const Shared sequence = *at;
    from.erase(at);
    finish(sequence, Reason::kCancelled, aborted);
  };
  remove(waiting_);
  remove(active_);
  if (!prefill_) return;
  const std::vector<Shared>& members = prefill_->members;
  const auto at = std::find_if(members.begin(), members.end(), is);
  if (at == members.end()) return;
  (*at)->cancelled = true;
  if (std::all_of(members.begin(), members.end(), [](const Shared& member) { return member->cancelled; })) {
    const std::unique_ptr<Prefill> ended = std::move(prefill_);
    ended->pass = Pass();
    for (const Shared& member : ended->members) finish(member, Reason::kCancelled, aborted);
  } else if ((*at)->session < 0) {
    tell(**at, Reason::kCancelled, aborted);
  }
}

void Scheduler::reject_all(const Failure& failure) {
  std::vector<Shared> all(waiting_.begin(), waiting_.end());
  all.insert(all.end(), active_.begin(), active_.end());
  if (prefill_) all.insert(all.end(), prefill_->members.begin(), prefill_->members.end());
  prefill_.reset();
  waiting_.clear();
  active_.clear();
  for (const Shared& sequence : all) finish(sequence, Reason::kError, failure);
}

void Scheduler::step() {
  decode();
  if (!prefill_) start_prefill();
  if (prefill_) step_prefill();
}

std::vector<Scheduler::Sampled> Scheduler::sample(const std::vector<Shared>& batch, const Matrix& logits) {
  std::vector<SamplingRow> rows;
  bool log_probs = false;
  for (const Shared& sequence : batch) {
    const SamplingRequest& options = sequence->sampling;
    SamplingRow row;
    row.temperature = options.temperature;
    row.top_k = options.top_k;
    row.top_p = options.top_p;
    row.min_p = options.min_p;
    row.repetition_penalty = options.repetition_penalty;
    row.seed = options.seed;
    row.draw = static_cast<uint64_t>(sequence->usage.completion_tokens);
    row.history = sequence->context.ids.data();
    row.history_length = sequence->context.size();
    row.banned = sequence->banned_tokens.data();
    row.banned_length = static_cast<int64_t>(sequence->banned_tokens.size());
    if (sequence->matcher) row.allowed = sequence->matcher->allowed(sequence->stop_tokens);
    rows.push_back(row);
    log_probs |= sequence->log_probs;
  }
  std::vector<int32_t> tokens(batch.size());
  std::vector<float> values(batch.size(), std::numeric_limits<float>::quiet_NaN());
  model_.backend().sample(Sampling{logits, rows, tokens.data(), log_probs ? values.data() : nullptr});
  std::vector<Sampled> sampled;
  for (size_t i = 0; i < batch.size(); ++i) {
    sampled.push_back({tokens[i], batch[i]->log_probs ? values[i] : std::numeric_limits<float>::quiet_NaN()});
  }
  return sampled;
}

void Scheduler::accept(const Shared& sequence, Sampled sampled) {
  if (sequence->stops_at(sampled.token)) {
    tell(*sequence, Reason::kStop, {}, sampled.token);
    release(*sequence);
    return;
  }
  sequence->context.ids.push_back(sampled.token);
  ++sequence->usage.completion_tokens;
  sink_.push(TokenEvent{sequence->id, sampled.token, sampled.log_prob});
  if (sequence->matcher) sequence->matcher->accept(sampled.token);
  if (sequence->matcher && sequence->matcher->finished()) {
    finish(sequence, Reason::kStop);
  } else if (sequence->context.size() >= sequence->limit) {
    finish(sequence, Reason::kLength);
  } else {
    active_.push_back(sequence);
  }
}

void Scheduler::finish(const Shared& sequence, Reason reason, Failure failure) {
  tell(*sequence, reason, std::move(failure));
  release(*sequence);
}

// Told once. `release` follows at once, or at the end of a pass that other sequences still need; the end of a session's
// request is told with the release, because the next request may follow.
void Scheduler::tell(Sequence& sequence, Reason reason, Failure failure, int32_t stop_token) {
  if (sequence.done) return;
  sequence.done = true;
  if (sequence.kind == Sequence::Kind::kScore) {
    if (reason == Reason::kStop) {
      sink_.push(JobDone{sequence.id, std::move(sequence.scores)});
    } else {
      sink_.push(JobDone{sequence.id, std::move(failure)});
    }
    return;
  }
  DoneEvent done{sequence.id, reason, stop_token, sequence.usage, std::move(failure)};
  done.usage.context_tokens = sequence.context.size();
  sink_.push(std::move(done));
}

void Scheduler::release(Sequence& sequence) {
  if (sequence.session >= 0) {
    contexts_.put_back(sequence.session, std::move(sequence.context));
  } else {
    pages_.shrink(sequence.context.pages, 0);
  }
}

}  // namespace at_moe
