// The scheduler's passes over whole prompts: those whose routing is pooled over all of their rows.
#include <algorithm>

#include "engine/scheduler.h"

namespace at_moe {

namespace {

// Side by side, so that a short prompt does not wait for a long one.
constexpr size_t kMostPasses = 4;

}  // namespace

// Takes whole prompts in the order of their ranks, as many as make up a step, or one that is longer.
void Scheduler::start_pass() {
  if (passes_.size() >= kMostPasses) return;
  auto pass = std::make_unique<WholePass>();
  bool solo = false;
  for (const Shared& sequence : batch_) {
    const Sequence::Next next = sequence->next_rows();
    if (sequence->in_pass || !next.whole) continue;
    const bool first = pass->rows.parts.empty();
    const int64_t count = pass->rows.count() + next.end - sequence->context.computed;
    if (!first && (solo || sequence->solo || count > limits_.step_tokens)) continue;
    if (!hold_mixture(*sequence)) continue;  // the step may have brought it to where it needs another one
    add_rows(pass->rows, sequence, next.end);
    sequence->in_pass = true;
    solo = sequence->solo;
  }
  if (pass->rows.parts.empty()) return;
  passes_.push_back(std::move(pass));
}

std::unique_ptr<Workspace> Scheduler::workspace_for(int64_t rows) {
  if (spare_workspace_ && rows <= spare_workspace_->rows()) return std::move(spare_workspace_);
  spare_workspace_.reset();
  const int64_t capacity = std::max(rows, limits_.step_tokens);
  return std::make_unique<Workspace>(model_, capacity, limits_.max_batch, pages_per_sequence(), limits_.chunk_rows);
}

// Passes take turns, a unit each.
void Scheduler::step_passes(int64_t units) {
  start_pass();
  for (; units > 0 && !passes_.empty(); --units) {
    std::unique_ptr<WholePass> pass = std::move(passes_.front());
    passes_.pop_front();
    bool more = false;
    try {
      more = resume(*pass);
    } catch (...) {
      fail_pass(std::move(pass), failure_of(std::current_exception()));
      continue;
    }
    if (more) {
      passes_.push_back(std::move(pass));
    } else {
      end_pass(std::move(pass));
    }
  }
}

bool Scheduler::resume(WholePass& pass) {
  if (!pass.pass) {
    pass.workspace = workspace_for(pass.rows.count());
    pass.pass = forward(model_, *pass.workspace, *pool_, pass.rows.rows, pass.rows.result);
  }
  return pass.pass.resume();
}

void Scheduler::end_pass(std::unique_ptr<WholePass> ended) {
  ended->pass = Pass();
  for (const Part& part : ended->rows.parts) {
    part.sequence->in_pass = false;
    if (prefixes_) prefixes_->settle(part.sequence->context.spans.back());
  }
  take_results(ended->rows);
  if (!spare_workspace_ || spare_workspace_->rows() < ended->workspace->rows())
    spare_workspace_ = std::move(ended->workspace);
}

void Scheduler::drop_unwanted_pass() {
  auto wanted = [](const Part& part) { return part.sequence->wanted(); };
  const auto at = std::find_if(passes_.begin(), passes_.end(), [&](const std::unique_ptr<WholePass>& pass) {
    return std::none_of(pass->rows.parts.begin(), pass->rows.parts.end(), wanted);
  });
  if (at == passes_.end()) return;
  const std::unique_ptr<WholePass> pass = std::move(*at);
  passes_.erase(at);
  pass->pass = Pass();
  for (const Part& part : pass->rows.parts) {
    part.sequence->in_pass = false;
    ended(part.sequence);
  }
}

// A failure of several is tried again one by one.
void Scheduler::fail_pass(std::unique_ptr<WholePass> failed, const Failure& failure) {
  failed->pass = Pass();
  for (const Part& part : failed->rows.parts) {
    part.sequence->in_pass = false;
    part.sequence->solo = true;
    if (!ended(part.sequence) && failed->rows.parts.size() == 1) finish(part.sequence, Reason::kError, failure);
  }
}

}  // namespace at_moe
