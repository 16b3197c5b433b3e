#include "engine/sequence.h"

#include <algorithm>

namespace at_moe {

size_t Context::span_at(int64_t position) const {
  size_t index = spans.size() - 1;
  while (index > 0 && spans[index].begin > position) --index;
  return index;
}

int64_t Context::span_end(int64_t position) const {
  for (const RoutingSpan& span : spans) {
    if (span.begin > position) return span.begin;
  }
  return size();
}

void Context::truncate(int64_t tokens) {
  ids.resize(static_cast<size_t>(tokens));
  computed = std::min(computed, tokens);
  if (saved && saved->tokens() > tokens) saved.reset();
  while (!spans.empty() && spans.back().begin >= tokens) spans.pop_back();
}

bool Sequence::ranks_before(const Sequence& other) const {
  return priority() != other.priority() ? priority() > other.priority() : arrival < other.arrival;
}

bool Sequence::wanted() const {
  return (!done && !end) || std::any_of(siblings.begin(), siblings.end(), [](const auto& one) { return !one->done; });
}

const std::shared_ptr<Mixture>& Sequence::next_mixture() const {
  return context.spans[context.span_at(context.computed)].routing->mixture;
}

Sequence::Next Sequence::next_rows() const {
  const int64_t begin = context.computed;
  Next next{std::min(context.span_end(begin), rows_wanted())};
  next.whole = context.spans[context.span_at(begin)].routing->mode == SequenceRouting::Mode::kPool;
  if (begin < traced) next.end = std::min(next.end, traced);
  return next;
}

// The row before an id predicts it. Rows of a replay that have been scored have no label.
std::vector<int32_t> Sequence::labels(int64_t begin, int64_t end) const {
  std::vector<int32_t> labels(static_cast<size_t>(end - begin), -100);
  const int64_t from = first - 1 + static_cast<int64_t>(scores.size());
  for (int64_t row = std::max(begin, from); row < end; ++row) {
    labels[static_cast<size_t>(row - begin)] = context.ids[static_cast<size_t>(row + 1)];
  }
  return labels;
}

bool Sequence::stops_at(int32_t token) const {
  return std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end();
}

}  // namespace at_moe
