// The scheduler's decode steps.
#include <algorithm>

#include "engine/scheduler.h"

namespace at_moe {

namespace {

using Reason = DoneEvent::Reason;

}  // namespace

void Scheduler::decode() {
  if (active_.empty()) return;
  std::sort(active_.begin(), active_.end(), [](const Shared& a, const Shared& b) { return a->order < b->order; });
  for (size_t i = 0; i < active_.size(); ++i) {
    while (!hold_pages(*active_[i])) {
      const Shared last = active_.back();
      active_.pop_back();
      give_way(last);
      if (i >= active_.size()) break;
    }
  }
  decode(std::exchange(active_, {}));
}

// Keys are computed again later; the ids and the routing stay.
void Scheduler::give_way(const Shared& sequence) {
  pages_.shrink(sequence->context.pages, 0);
  sequence->context.computed = 0;
  sequence->admitted = false;
  waiting_.push_front(sequence);
}

bool Scheduler::reclaim_waiting(const Shared& except) {
  for (const Shared& sequence : waiting_) {
    if (sequence == except || sequence->context.pages.empty()) continue;
    pages_.shrink(sequence->context.pages, 0);
    sequence->context.computed = 0;
    sequence->admitted = false;
    return true;
  }
  return false;
}

void Scheduler::decode(const std::vector<Shared>& batch) {
  if (batch.empty()) return;
  std::vector<SequenceRows> rows(batch.size());
  std::vector<RoutingTrace> traces(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const Context& context = batch[i]->context;
    rows[i].ids = {context.ids.back()};
    rows[i].position = context.computed;
    rows[i].pages = context.pages;
    rows[i].routing = context.spans.back().routing.get();
    const bool each_row = rows[i].routing->mode == SequenceRouting::Mode::kToken;
    if (batch[i]->trace && each_row) rows[i].trace = &traces[i];
  }
  std::vector<Sampled> sampled;
  try {
    ForwardResult result;
    forward(model_, decode_workspace_, *pool_, rows, result).run();
    sampled = sample(batch, result.logits);
  } catch (...) {
    if (batch.size() > 1) {
      for (const Shared& sequence : batch) decode({sequence});
    } else {
      finish(batch.front(), Reason::kError, failure_of(std::current_exception()));
    }
    return;
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    Context& context = batch[i]->context;
    if (rows[i].trace) sink_.push(TraceEvent{batch[i]->id, context.computed, std::move(traces[i])});
    ++context.computed;
    batch[i]->traced = context.computed;
    accept(batch[i], sampled[i]);
  }
}

}  // namespace at_moe
