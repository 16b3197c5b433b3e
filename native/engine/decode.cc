// The scheduler's steps: a row of every sequence that decodes, and pieces of prompts.
#include <algorithm>

#include "core/status.h"
#include "engine/scheduler.h"

namespace at_moe {

int64_t Scheduler::Rows::count() const {
  int64_t count = 0;
  for (const SequenceRows& part : rows) count += static_cast<int64_t>(part.ids.size());
  return count;
}

// Returns the rows of the step.
int64_t Scheduler::step_batch() {
  Rows rows = plan_step();
  const int64_t count = rows.count();
  if (count > 0) run(std::move(rows));
  return count;
}

// The first prompt in rank gets at least half of the rows left, the rest goes to the shortest pieces: a long prompt makes
// progress, and a short one does not wait for it.
Scheduler::Rows Scheduler::plan_step() {
  std::sort(batch_.begin(), batch_.end(), [](const Shared& a, const Shared& b) { return a->ranks_before(*b); });
  for (size_t i = 0; i < batch_.size();) {
    const Shared sequence = batch_[i];
    const bool fits = sequence->in_pass || hold_pages(sequence);
    if (!fits) preempt(*sequence);
    if (fits && (sequence->in_pass || hold_mixture(*sequence))) {
      ++i;
    } else {
      park(sequence);
    }
  }
  Rows rows;
  rows.parts.reserve(batch_.size());
  rows.rows.reserve(batch_.size());
  std::vector<Part> prompts;
  bool pass = !passes_.empty();
  for (const Shared& sequence : batch_) {
    const Sequence::Next next = sequence->next_rows();
    if (sequence->in_pass || next.whole) {
      pass = true;
    } else if (next.end == sequence->context.computed + 1) {
      add_rows(rows, sequence, next.end);
    } else {
      prompts.push_back({sequence, next.end});
    }
  }
  if (prompts.empty()) return rows;
  const int64_t most = rows.parts.empty() && !pass ? limits_.prompt_tokens : limits_.step_tokens;
  int64_t room = std::max<int64_t>(most - static_cast<int64_t>(rows.parts.size()), 1);
  if (pass) room = (room + 1) / 2;
  auto left = [](const Part& part) { return part.end - part.sequence->context.computed; };
  const int64_t own = std::min(left(prompts.front()), prompts.size() > 1 ? (room + 1) / 2 : room);
  room -= own;
  std::stable_sort(prompts.begin() + 1, prompts.end(), [&](const Part& a, const Part& b) { return left(a) < left(b); });
  std::vector<int64_t> ends = {own};
  for (size_t i = 1; i < prompts.size(); ++i) {
    ends.push_back(std::min(left(prompts[i]), room));
    room -= ends.back();
  }
  ends.front() += std::min(left(prompts.front()) - own, room);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Shared& sequence = prompts[i].sequence;
    if (ends[i] > 0) add_rows(rows, sequence, sequence->context.computed + ends[i]);
  }
  return rows;
}

void Scheduler::add_rows(Rows& rows, const Shared& sequence, int64_t end) {
  const Context& context = sequence->context;
  const int64_t begin = context.computed;
  const RoutingSpan& span = context.spans[context.span_at(begin)];
  SequenceRouting& routing = *span.routing;
  require(routing.mixture == sequence->mixture, "the rows need a mixture that their sequence does not hold");
  SequenceRows added;
  added.ids.assign(context.ids.begin() + begin, context.ids.begin() + end);
  added.position = begin;
  added.pages = context.pages;
  added.routing = &routing;
  const bool scored = sequence->kind == Sequence::Kind::kScore;
  if (scored) added.labels = sequence->labels(begin, end);
  if (routing.mode == SequenceRouting::Mode::kPool)
    routing.instruction_rows = (scored ? std::min(sequence->first, end) : end) - begin;
  const bool each_row = routing.mode == SequenceRouting::Mode::kToken;
  const bool untold = end > sequence->traced && (each_row || !span.traced);
  if (sequence->trace && untold && routing.mixture) added.trace = &rows.traces.emplace_back();
  const bool samples = !scored && end == context.size() && sequence->max_tokens > 0;
  const auto at = samples ? std::count_if(rows.parts.begin(), rows.parts.end(), [](auto& part) { return part.samples; })
                          : static_cast<std::ptrdiff_t>(rows.parts.size());
  rows.parts.insert(rows.parts.begin() + at, {sequence, end, samples});
  rows.rows.insert(rows.rows.begin() + at, std::move(added));
}

// A failure is one sequence's own if it fails alone as well.
void Scheduler::run(Rows rows) {
  try {
    forward(model_, step_workspace_, *pool_, rows.rows, rows.result).run();
  } catch (...) {
    if (rows.parts.size() == 1)
      return finish(rows.parts.front().sequence, Reason::kError, failure_of(std::current_exception()));
    for (const Part& part : rows.parts) {
      Rows alone;
      add_rows(alone, part.sequence, part.end);
      run(std::move(alone));
    }
    return;
  }
  take_results(rows);
}

void Scheduler::take_results(Rows& rows) {
  std::vector<Shared> sampling;
  for (size_t i = 0; i < rows.parts.size(); ++i) {
    take_rows(rows, i);
    if (rows.parts[i].samples) sampling.push_back(rows.parts[i].sequence);
  }
  stats_.batch_size = static_cast<int64_t>(rows.parts.size());
  if (sampling.empty()) return;
  take_samples(sampling, rows.result.logits.row_range(0, static_cast<int64_t>(sampling.size())));
}

void Scheduler::take_rows(Rows& rows, size_t index) {
  const Shared& sequence = rows.parts[index].sequence;
  Context& context = sequence->context;
  SequenceRows& computed = rows.rows[index];
  const int64_t begin = context.computed;
  const int64_t count = static_cast<int64_t>(computed.ids.size());
  context.computed += count;
  if (prefixes_) prefixes_->keep(context);
  if (begin + count < context.size() || count > 1) stats_.prompt_tokens += count;
  if (!sequence->wanted()) {
    if (!rows.parts[index].samples) ended(sequence);
    return;
  }
  if (computed.trace && !sequence->done) {
    context.spans[context.span_at(begin)].traced = true;
    sink_.push(TraceEvent{sequence->id, begin, std::move(*computed.trace)});
  }
  sequence->traced = std::max(sequence->traced, context.computed);
  for (size_t row = 0; row < computed.labels.size(); ++row) {
    if (computed.labels[row] >= 0) sequence->scores.push_back(computed.scores[row]);
  }
  if (context.computed < sequence->rows_wanted()) return;
  if (sequence->kind == Sequence::Kind::kScore) {
    finish(sequence, Reason::kStop);
  } else if (sequence->max_tokens == 0) {
    finish(sequence, Reason::kLength);
  }
}

void Scheduler::take_samples(const std::vector<Shared>& batch, const Matrix& logits) {
  std::vector<Sampled> sampled;
  try {
    sampled = sample(batch, logits);
  } catch (...) {
    if (batch.size() == 1) return finish(batch.front(), Reason::kError, failure_of(std::current_exception()));
    for (size_t i = 0; i < batch.size(); ++i) take_samples({batch[i]}, logits.row_range(static_cast<int64_t>(i), 1));
    return;
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    if (!batch[i]->siblings.empty()) fork(*batch[i], logits.row_range(static_cast<int64_t>(i), 1));
    accept(batch[i], sampled[i]);
  }
}

}  // namespace at_moe
