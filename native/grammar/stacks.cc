#include "grammar/stacks.h"

#include <algorithm>

#include "grammar/hash.h"

namespace at_moe {

Stacks::Stacks() : known_(16, Hash{this}, Same{this}) { clear(); }

size_t Stacks::Hash::operator()(int32_t stack) const {
  Hasher hash;
  for (const Frame& frame : stacks->frames(stack)) hash.add(frame.node, frame.stack);
  return hash.value();
}

bool Stacks::Same::operator()(int32_t a, int32_t b) const {
  return std::ranges::equal(stacks->frames(a), stacks->frames(b));
}

int32_t Stacks::intern(std::span<const Frame> frames) {
  const auto next = static_cast<int32_t>(size());
  frames_.insert(frames_.end(), frames.begin(), frames.end());
  starts_.push_back(frames_.size());
  const auto [found, added] = known_.insert(next);
  if (added) return next;
  starts_.pop_back();
  frames_.resize(starts_.back());
  return *found;
}

void Stacks::clear() {
  known_.clear();
  frames_.clear();
  starts_ = {0, 0};
  known_.insert(kBottom);
}

}  // namespace at_moe
