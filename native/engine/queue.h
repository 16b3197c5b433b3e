// Sequences that wait for a place in the batch, or for pages: higher priority first, equal ones in the order of their
// arrival. Of every kPatience + 1 that are taken, one is the one that arrived first, so that nobody waits for ever.
#pragma once

#include <algorithm>
#include <memory>
#include <set>

#include "engine/sequence.h"

namespace at_moe {

class Queue {
 public:
  using Shared = std::shared_ptr<Sequence>;

  static constexpr int64_t kPatience = 15;

  bool empty() const { return ranked_.empty(); }
  int64_t size() const { return static_cast<int64_t>(ranked_.size()); }
  // Texts of those that have never been in the batch, and the sequences that have.
  int64_t waiting() const { return waiting_; }
  int64_t returning() const { return returning_; }

  void add(const Shared& sequence);
  void remove(const Shared& sequence);
  // The first in rank of those that can be taken, or null. Whose patience is at an end counts as of the highest priority.
  template <typename Ready>
  Shared next(Ready&& ready) {
    age();
    const auto at = std::find_if(ranked_.begin(), ranked_.end(), ready);
    return at == ranked_.end() ? nullptr : *at;
  }
  // Removes one that was `next`.
  void take(const Shared& sequence);

  // In the order of their ranks.
  auto begin() const { return ranked_.begin(); }
  auto end() const { return ranked_.end(); }
  auto rbegin() const { return ranked_.rbegin(); }
  auto rend() const { return ranked_.rend(); }

 private:
  struct ByRank {
    bool operator()(const Shared& a, const Shared& b) const { return a->ranks_before(*b); }
  };
  struct ByArrival {
    bool operator()(const Shared& a, const Shared& b) const { return a->arrival < b->arrival; }
  };
  void count(const Sequence& sequence, int64_t sign);
  void age();

  std::set<Shared, ByRank> ranked_;
  std::set<Shared, ByArrival> arrived_;
  int64_t waiting_ = 0, returning_ = 0;
  int64_t passed_over_ = 0;  // taken since the one that arrived first was
};

}  // namespace at_moe
