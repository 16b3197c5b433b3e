// The scheduler's prefill passes.
#include <algorithm>

#include "engine/scheduler.h"

namespace at_moe {

namespace {

using Reason = DoneEvent::Reason;

}  // namespace

void Scheduler::start_prefill() {
  prefill_ = gather_prefill();
  // Sequences that wait hold pages of earlier turns or chunks: with nothing running, these may keep the first out.
  while (!prefill_ && active_.empty() && !waiting_.empty()) {
    if (!reclaim_waiting(waiting_.front())) {
      const Shared first = waiting_.front();
      waiting_.pop_front();
      finish(first, Reason::kError, {Code::kOutOfMemory, "the KV cache has no room for the sequence"});
    }
    prefill_ = gather_prefill();
  }
}

// Takes sequences in their order up to the budgets of rows, sequences and pages.
std::unique_ptr<Scheduler::Prefill> Scheduler::gather_prefill() {
  auto prefill = std::make_unique<Prefill>();
  int64_t rows = 0;
  while (!waiting_.empty()) {
    const Shared sequence = waiting_.front();
    const bool first = prefill->members.empty();
    if (!first && (sequence->solo || prefill->members.front()->solo)) break;
    if (static_cast<int64_t>(active_.size() + prefill->members.size()) >= limits_.max_batch) break;
    const Sequence::Next next = sequence->next_rows();
    const int64_t begin = sequence->context.computed;
    const int64_t room = limits_.step_tokens - rows;
    const int64_t end = next.whole ? next.end : std::min(next.end, begin + room);
    if (!first && (end == begin || end - begin > room)) break;
    if (!hold_pages(*sequence)) break;
    waiting_.pop_front();
    plan_rows(*prefill, *sequence, end);
    prefill->members.push_back(sequence);
    rows += end - begin;
  }
  return prefill->members.empty() ? nullptr : std::move(prefill);
}

void Scheduler::open_pass(Prefill& prefill) {
  int64_t rows = 0;
  for (const SequenceRows& part : prefill.rows) rows += static_cast<int64_t>(part.ids.size());
  if (!prefill_workspace_ || rows > prefill_workspace_->rows()) {
    prefill_workspace_.reset();
    const int64_t capacity = std::max(rows, limits_.step_tokens);
    prefill_workspace_ =
        std::make_unique<Workspace>(model_, capacity, limits_.max_batch, pages_per_sequence(), limits_.chunk_rows);
  }
  prefill.pass = forward(model_, *prefill_workspace_, *pool_, prefill.rows, prefill.result);
}

// Pages for all that is known of the sequence, so that a prefill once begun can end.
bool Scheduler::hold_pages(Sequence& sequence) {
  const int64_t tokens = std::min(sequence.context.size() + 1, limits_.context_length);
  while (!pages_.grow(sequence.context.pages, tokens)) {
    if (!contexts_.evict_one()) return false;
  }
  if (!sequence.admitted) sequence.order = admissions_++;
  sequence.admitted = true;
  return true;
}

void Scheduler::plan_rows(Prefill& prefill, Sequence& sequence, int64_t end) {
  Context& context = sequence.context;
  const int64_t begin = context.computed;
  const RoutingSpan& span = context.spans[context.span_at(begin)];
  SequenceRows rows;
  rows.ids.assign(context.ids.begin() + begin, context.ids.begin() + end);
  rows.position = begin;
  rows.pages = context.pages;
  rows.routing = span.routing.get();
  if (sequence.kind == Sequence::Kind::kScore) {
    rows.labels = sequence.labels(begin, end);
    rows.routing->instruction_rows = std::min(sequence.first, end) - begin;
  } else {
    rows.routing->instruction_rows = end - begin;
  }
  const bool each_row = rows.routing->mode == SequenceRouting::Mode::kToken;
  const bool untold = end > sequence.traced && (each_row || !span.traced);
  if (sequence.trace && untold && rows.routing->mixture) rows.trace = &prefill.traces.emplace_back();
  prefill.rows.push_back(std::move(rows));
}

void Scheduler::step_prefill() {
  bool more = false;
  try {
    if (!prefill_->pass) open_pass(*prefill_);
    more = prefill_->pass.resume();
  } catch (...) {
    const std::unique_ptr<Prefill> failed = std::move(prefill_);
    failed->pass = Pass();
    if (failed->members.size() > 1) {
      retry_alone(failed->members);
    } else {
      finish(failed->members.front(), Reason::kError, failure_of(std::current_exception()));
    }
    return;
  }
  if (!more) end_prefill();
}

void Scheduler::retry_alone(const std::vector<Shared>& members) {
  for (size_t i = members.size(); i-- > 0;) {
    members[i]->solo = true;
    if (members[i]->cancelled) {
      finish(members[i], Reason::kCancelled);
    } else {
      waiting_.push_front(members[i]);
    }
  }
}

void Scheduler::end_prefill() {
  const std::unique_ptr<Prefill> ended = std::move(prefill_);
  ended->pass = Pass();
  for (size_t i = ended->members.size(); i-- > 0;) {
    const Shared& sequence = ended->members[i];
    try {
      after_prefill(*ended, i);
    } catch (...) {
      finish(sequence, Reason::kError, failure_of(std::current_exception()));
    }
  }
}

void Scheduler::after_prefill(Prefill& prefill, size_t index) {
  const Shared& sequence = prefill.members[index];
  Context& context = sequence->context;
  SequenceRows& rows = prefill.rows[index];
  const int64_t begin = context.computed;
  context.computed += static_cast<int64_t>(rows.ids.size());
  if (sequence->cancelled) return finish(sequence, Reason::kCancelled);
  if (rows.trace) {
    context.spans[context.span_at(begin)].traced = true;
    sink_.push(TraceEvent{sequence->id, begin, std::move(*rows.trace)});
  }
  sequence->traced = std::max(sequence->traced, context.computed);
  for (size_t row = 0; row < rows.labels.size(); ++row) {
    if (rows.labels[row] >= 0) sequence->scores.push_back(rows.scores[row]);
  }
  if (context.computed < sequence->rows_wanted()) {
    waiting_.push_front(sequence);
  } else if (sequence->kind == Sequence::Kind::kScore) {
    finish(sequence, Reason::kStop);
  } else if (sequence->max_tokens == 0) {
    finish(sequence, Reason::kLength);
  } else {
    const Matrix logits = prefill.result.logits.row_range(static_cast<int64_t>(index), 1);
    accept(sequence, sample({sequence}, logits).front());
  }
}

}  // namespace at_moe
