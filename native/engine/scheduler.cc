#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

#include "core/status.h"

namespace at_moe {

namespace {

KvPool::Shape pool_shape(const ModelConfig& config, int64_t tokens) {
  return {config.num_layers, KvPages::pages_of(tokens), config.num_kv_heads, config.head_dim};
}

}  // namespace

Scheduler::Scheduler(const Model& model, const Limits& limits, RoutingMaker make_routing, Residency& residency,
                     EventSink& sink)
    : model_(model),
      limits_(limits),
      make_routing_(std::move(make_routing)),
      residency_(residency),
      sink_(sink),
      pool_(model.backend().create_kv(pool_shape(model.config(), limits.kv_tokens))),
      pages_(KvPages::pages_of(limits.kv_tokens)),
      contexts_(pages_),
      step_workspace_(model, limits.max_batch + limits.prompt_tokens, limits.max_batch, pages_per_sequence(),
                      std::max(limits.max_batch, limits.chunk_rows)) {
  if (limits.prefix_cache) prefixes_.emplace(pages_, model);
  if (limits.host_kv_bytes) host_pages_.emplace(model.backend(), *pool_, limits.host_kv_bytes);
}

size_t Scheduler::workspace_bytes() const {
  size_t bytes = step_workspace_.bytes() + (spare_workspace_ ? spare_workspace_->bytes() : 0);
  for (const std::unique_ptr<WholePass>& pass : passes_) bytes += pass->workspace ? pass->workspace->bytes() : 0;
  return bytes;
}

void Scheduler::check_ids(const std::vector<int32_t>& ids) const {
  if (ids.empty()) fail(Code::kMismatch, "there are no token ids");
  for (int32_t id : ids) {
    if (id >= 0 && id < model_.config().vocab_size) continue;
    fail(Code::kMismatch, "token id ", id, " is not in the vocabulary of ", model_.config().vocab_size);
  }
}

void Scheduler::check_queue(int64_t requests, int64_t sequences) {
  if (!limits_.max_queue) return;
  int64_t places = limits_.max_batch - queue_.returning();
  for (const Shared& one : batch_) places -= 1 + static_cast<int64_t>(one->siblings.size());
  const int64_t waiting = queue_.waiting();
  if (waiting + sequences <= *limits_.max_queue + std::max<int64_t>(places, 0)) return;
  stats_.refused += requests;
  fail(Code::kQueueFull, "no room for ", sequences, " more: ", waiting, " texts wait of at most ", *limits_.max_queue);
}

Scheduler::Shared Scheduler::begin(const GenerateRequest& request, const std::shared_ptr<Constraint>& constraint) {
  check_ids(request.ids);
  auto sequence = std::make_shared<Sequence>();
  if (constraint) sequence->matcher.emplace(constraint);
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
  own_last_page(context);
  context.ids.insert(context.ids.end(), request.ids.begin(), request.ids.end());
  if (routing) {
    context.spans.push_back({kept, std::move(routing)});
    number_routing(context, request.routing, size);
  }
  sequence->id = request.sequence;
  sequence->usage.prompt_tokens = static_cast<int64_t>(request.ids.size());
  sequence->limit = std::min(size + request.max_tokens, limits_.context_length);
  sequence->max_tokens = request.max_tokens;
  sequence->trace = request.trace;
  sequence->traced = request.trace ? kept : 0;
  for (RoutingSpan& span : context.spans) span.traced = false;
  sequence->log_probs = request.log_probs;
  sequence->stop_tokens = request.stop_tokens;
  sequence->banned_tokens = request.banned_tokens;
  sequence->sampling = request.sampling;
  sequence->scheduling = request.scheduling;
  sequence->max_unread = request.max_unread;
  add_siblings(*sequence, request.n);
  return sequence;
}

Scheduler::Shared Scheduler::begin(ScoreRequest request) {
  check_ids(request.ids);
  const int64_t size = static_cast<int64_t>(request.ids.size());
  if (request.first < 1 || request.first >= size)
    fail(Code::kMismatch, "there is nothing to score from id ", request.first, " of ", size);
  if (size - 1 > limits_.context_length) {
    fail(Code::kContextLength, "the text has ", size, " tokens, the context holds ", limits_.context_length);
  }
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = Kind::kScore;
  sequence->id = request.job;
  sequence->first = request.first;
  sequence->scheduling = request.scheduling;
  sequence->context.spans.push_back({0, make_routing_(request.routing)});
  sequence->context.ids = std::move(request.ids);
  number_routing(sequence->context, request.routing, request.first);
  return sequence;
}

// Of the last span, which is pooled over the ids up to `instruction` if it is pooled.
void Scheduler::number_routing(Context& context, const RoutingRequest& request, int64_t instruction) {
  if (!prefixes_ || !request.selection.empty()) return;
  RoutingSpan& span = context.spans.back();
  const bool pooled = span.routing->mode == SequenceRouting::Mode::kPool;
  if (pooled && span.begin > 0) return prefixes_->number_alone(span);
  const std::span<const int32_t> ids(context.ids);
  prefixes_->number(span, describe(request), pooled ? ids.first(static_cast<size_t>(instruction)) : ids.first(0));
}

void Scheduler::add(const GenerateRequest& request, const std::shared_ptr<Constraint>& constraint) {
  enter(begin(request, constraint));
}

void Scheduler::add(ScoreRequest request) {
  check_queue(1, 1);
  enter(begin(std::move(request)));
}

void Scheduler::enter(const Shared& sequence) {
  ++stats_.requests;
  auto arrive = [this](const Shared& one) {
    one->arrival = ++arrivals_;
    live_[{one->kind, one->id}] = one;
  };
  arrive(sequence);
  for (const Shared& sibling : sequence->siblings) {
    sibling->carrier = sequence;
    arrive(sibling);
  }
  next_deadline_ = std::min(next_deadline_, sequence->scheduling.deadline);
  put(sequence, Place::kQueue);
}

void Scheduler::cancel(Kind kind, int64_t id) {
  const auto found = live_.find({kind, id});
  if (found == live_.end()) return;
  const Shared sequence = found->second;
  end(sequence, Reason::kCancelled, {Code::kAborted, "the job was aborted"});
}

void Scheduler::read_tokens(int64_t id, int64_t tokens) {
  const auto found = live_.find({Kind::kGenerate, id});
  if (found == live_.end()) return;
  const Shared& sequence = found->second;
  sequence->unread -= tokens;
  if (sequence->place == Place::kStalled && !sequence->must_wait()) put(sequence, Place::kQueue);
}

void Scheduler::forget(const std::shared_ptr<Mixture>& mixture) {
  if (prefixes_) prefixes_->forget(mixture);
}

void Scheduler::reject_all(const Failure& failure) {
  passes_.clear();
  for (const auto& [id, sequence] : std::exchange(live_, {})) finish(sequence, Reason::kError, failure);
}

// A pass writes the keys of its sequences up to its end, unless none of them is wanted any more; a sequence whose siblings
// wait for its prompt goes on up to there.
void Scheduler::end(const Shared& sequence, Reason reason, const Failure& failure) {
  if (sequence->in_pass && sequence->session >= 0) {
    sequence->end = {reason, failure};
  } else {
    tell(*sequence, reason, failure);
  }
  for (const Shared& one : {sequence, sequence->carrier.lock()}) {
    if (one && !one->in_pass && !one->wanted()) release(one);
  }
  drop_unwanted_pass();
}

bool Scheduler::ended(const Shared& sequence) {
  if (sequence->done) {
    release(sequence);
  } else if (sequence->end) {
    finish(sequence, sequence->end->reason, sequence->end->failure);
  } else {
    return false;
  }
  return true;
}

void Scheduler::expire(Clock::time_point now) {
  if (now < next_deadline_) return;
  next_deadline_ = Clock::time_point::max();
  std::vector<Shared> late;
  for (const auto& [id, sequence] : live_) {
    if (sequence->done || sequence->end) continue;
    const Clock::time_point deadline = sequence->scheduling.deadline;
    if (deadline <= now) {
      late.push_back(sequence);
    } else {
      next_deadline_ = std::min(next_deadline_, deadline);
    }
  }
  stats_.expired += static_cast<int64_t>(late.size());
  for (const Shared& sequence : late) end(sequence, Reason::kError, {Code::kDeadline, "the request's time is up"});
}

void Scheduler::step() {
  expire(Clock::now());
  admit();
  const int64_t rows = step_batch();
  const int64_t room = std::max<int64_t>(limits_.step_tokens - rows, 1);
  step_passes(std::max<int64_t>(room * model_.config().num_layers / limits_.chunk_rows, 1));
  ++stats_.steps;
}

bool Scheduler::decoding() const {
  return std::any_of(batch_.begin(), batch_.end(), [](const Shared& one) { return !one->in_pass; });
}

EngineStats Scheduler::stats() const {
  EngineStats stats = stats_;
  stats.running = static_cast<int64_t>(batch_.size());
  stats.queued = queue_.size();
  stats.stalled = static_cast<int64_t>(stalled_.size());
  stats.pages_used = pages_.used();
  stats.pages_cached = pages_.cached();
  stats.pages_free = pages_.free();
  stats.pages_on_host = host_pages_ ? host_pages_->held() : 0;
  residency_.add_to(stats);
  return stats;
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
  if (ended(sequence)) return;
  if (sequence->stops_at(sampled.token)) {
    tell(*sequence, Reason::kStop, {}, sampled.token);
    release(sequence);
    return;
  }
  sequence->context.ids.push_back(sampled.token);
  ++sequence->usage.completion_tokens;
  ++sequence->unread;
  ++stats_.completion_tokens;
  sink_.push(TokenEvent{sequence->id, sampled.token, sampled.log_prob});
  if (sequence->matcher) sequence->matcher->accept(sampled.token);
  if (sequence->matcher && sequence->matcher->finished()) {
    finish(sequence, Reason::kStop);
  } else if (sequence->context.size() >= sequence->limit) {
    finish(sequence, Reason::kLength);
  } else if (sequence->must_wait()) {
    put(sequence, Place::kStalled);
  }
}

// Siblings that have not begun end with it.
void Scheduler::finish(const Shared& sequence, Reason reason, Failure failure) {
  for (const Shared& sibling : std::exchange(sequence->siblings, {})) {
    if (!sibling->done) finish(sibling, reason, failure);
  }
  tell(*sequence, reason, std::move(failure));
  release(sequence);
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

void Scheduler::release(const Shared& sequence) {
  put(sequence, Place::kNone);
  live_.erase({sequence->kind, sequence->id});
  if (sequence->session >= 0) {
    contexts_.put_back(sequence->session, std::move(sequence->context));
  } else {
    pages_.shrink(sequence->context.pages, 0);
  }
}

}  // namespace at_moe
