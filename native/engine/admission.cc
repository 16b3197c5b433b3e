// The scheduler's places, mixtures and pages: who comes into the batch, and who gives way.
#include <algorithm>
#include <iterator>
#include <set>

#include "engine/scheduler.h"

namespace at_moe {

void Scheduler::put(const Shared& sequence, Place place) {
  switch (sequence->place) {
    case Place::kNone: break;
    case Place::kQueue: queue_.remove(sequence); break;
    case Place::kBatch: std::erase(batch_, sequence); break;
    case Place::kStalled: std::erase(stalled_, sequence); break;
  }
  sequence->place = place;
  if (place != Place::kBatch) sequence->mixture.reset();
  switch (place) {
    case Place::kNone: break;
    case Place::kQueue:
      queue_.add(sequence);
      held_up_ = false;
      break;
    case Place::kBatch: batch_.push_back(sequence); break;
    case Place::kStalled: stalled_.push_back(sequence); break;
  }
}

// In turn: a sequence that has no pages yet is not overtaken by one that would have, but one whose mixture is not on the
// device lets others pass.
void Scheduler::admit() {
  held_up_ = false;
  bring_mixtures();
  const auto ready = [this](const Shared& one) {
    return !one->next_mixture() || residency_.ready(*one->next_mixture());
  };
  while (const Shared next = queue_.next(ready)) {
    const bool full = static_cast<int64_t>(batch_.size()) >= limits_.max_batch;
    const Shared least = full ? lowest(batch_) : nullptr;
    if (full && (!least || least->priority() >= next->scheduling.priority)) return;
    if (!hold_pages(next)) {
      held_up_ = batch_.empty() && next != *queue_.begin();  // those before it have the pages, and wait for mixtures
      if (held_up_ || !batch_.empty()) return;
      finish(next, Reason::kError, {Code::kOutOfMemory, "the KV cache has no room for the sequence"});
      continue;
    }
    if (!hold_mixture(*next)) continue;  // its keys were found up to where it needs another one
    if (full && least->place == Place::kBatch) park(least);
    queue_.take(next);
    next->place = Place::kNone;
    if (!next->started) {
      next->usage.cached_tokens = next->context.computed;
      if (next->mixture) ++(next->missed ? stats_.adapter_misses : stats_.adapter_hits);
    }
    next->started = true;
    put(next, Place::kBatch);
  }
  held_up_ = batch_.empty();
}

// Asks for what those that wait need, in the order of their ranks.
void Scheduler::bring_mixtures() {
  std::vector<std::shared_ptr<Mixture>> wanted;
  if (residency_.limited()) {
    std::set<const Mixture*> known;
    for (const Shared& one : queue_) {
      const std::shared_ptr<Mixture>& mixture = one->next_mixture();
      if (!mixture) continue;
      one->missed |= !residency_.ready(*mixture);
      if (known.insert(mixture.get()).second) wanted.push_back(mixture);
    }
  }
  for (const Residency::Refused& refused : residency_.bring(std::move(wanted))) {
    std::vector<Shared> waiting;
    std::copy_if(queue_.begin(), queue_.end(), std::back_inserter(waiting),
                 [&](const Shared& one) { return one->next_mixture() == refused.mixture; });
    for (const Shared& one : waiting) finish(one, Reason::kError, refused.failure);
  }
}

// Of its next rows. A sequence that has gone on to another mixture lets go of the one before.
bool Scheduler::hold_mixture(Sequence& sequence) {
  const std::shared_ptr<Mixture>& next = sequence.next_mixture();
  if (sequence.mixture == next) return true;
  sequence.mixture.reset();
  if (next) sequence.mixture = residency_.hold(next);
  return sequence.mixture == next;
}

// Pages for all that is known of the sequence, so that a prefill once begun can end.
bool Scheduler::hold_pages(const Shared& sequence) {
  reuse_keys(*sequence);
  const int64_t tokens = std::min(sequence->context.size() + 1, limits_.context_length);
  while (!pages_.grow(sequence->context.pages, tokens)) {
    if (!free_pages(*sequence)) return false;
  }
  if (sequence->context.saved) restore_keys(sequence->context);
  return true;
}

// Frees the pages of one other sequence. One that waits takes a place in the batch from lower priorities only.
bool Scheduler::free_pages(const Sequence& wanting) {
  if (Context* idle = contexts_.oldest_idle()) {
    drop_keys(*idle);
    return true;
  }
  if (const Shared slow = lowest(stalled_)) {
    preempt(*slow);
    return true;
  }
  const auto idle = std::find_if(queue_.rbegin(), queue_.rend(), [&](const Shared& one) {
    return !one->context.pages.empty() && one.get() != &wanting;
  });
  if (idle != queue_.rend() && wanting.ranks_before(**idle)) {
    preempt(**idle);
    return true;
  }
  const Shared last = lowest(batch_);
  if (!last || last.get() == &wanting || !wanting.ranks_before(*last)) return false;
  if (wanting.place != Place::kBatch && wanting.scheduling.priority <= last->priority()) return false;
  preempt(*last);
  park(last);
  return true;
}

// The last in rank of those that hold pages; those in a pass keep them.
Scheduler::Shared Scheduler::lowest(const std::vector<Shared>& among) const {
  Shared last;
  for (const Shared& one : among) {
    if (one->in_pass || one->context.pages.empty()) continue;
    if (!last || last->ranks_before(*one)) last = one;
  }
  return last;
}

// Looks up the rows before the first whose result is wanted.
void Scheduler::reuse_keys(Sequence& sequence) {
  Context& context = sequence.context;
  if (sequence.place == Place::kBatch || !prefixes_) return;
  int64_t most = sequence.kind == Kind::kScore ? sequence.first - 1 + static_cast<int64_t>(sequence.scores.size())
                                               : context.size() - 1;
  const bool each_row = std::any_of(context.spans.begin(), context.spans.end(), [](const RoutingSpan& span) {
    return span.routing->mode == SequenceRouting::Mode::kToken;
  });
  if (sequence.trace && each_row) most = std::min(most, sequence.traced);
  const int64_t before = context.computed;
  if (static_cast<int64_t>(context.pages.size()) * kPageTokens == before) prefixes_->extend(context, most);
  if (sequence.started) return;
  stats_.looked_up_tokens += std::max<int64_t>(most - before, 0);
  stats_.hit_tokens += context.computed - before;
}

// The keys come back from host memory or are computed again; the ids and the routing stay.
void Scheduler::drop_keys(Context& context) {
  if (host_pages_ && context.computed > 0) context.saved = host_pages_->save(context.pages, context.computed);
  pages_.shrink(context.pages, 0);
  context.computed = 0;
}

void Scheduler::restore_keys(Context& context) {
  const std::shared_ptr<HostPages::Saved> saved = std::move(context.saved);
  if (saved->tokens() <= context.computed) return;
  host_pages_->restore(*saved, context.pages, context.computed / kPageTokens);
  stats_.restored_tokens += saved->tokens() - context.computed;
  context.computed = saved->tokens();
}

void Scheduler::preempt(Sequence& sequence) {
  drop_keys(sequence.context);
  stats_.preemptions += sequence.place != Place::kBatch && sequence.started;
}

// Out of the batch, with what it holds.
void Scheduler::park(const Shared& sequence) {
  put(sequence, Place::kQueue);
  ++stats_.preemptions;
}

}  // namespace at_moe
