// Who holds which page of the KV pool. A page may have several holders, who do not write to it then, and may be kept for
// reuse: with its last holder gone it stays as it is until its room is needed, the one unused for longest first.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <vector>

#include "backend/ops/attention.h"

namespace at_moe {

class KvPages {
 public:
  explicit KvPages(int64_t pages);

  static int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

  // Grows `pages` to hold `tokens`. False, and no change, when there are not enough.
  bool grow(std::vector<int32_t>& pages, int64_t tokens);
  // Gives back what `tokens` tokens do not need, the last page first.
  void shrink(std::vector<int32_t>& pages, int64_t tokens);

  // One more holder.
  void share(int32_t page);
  void give_back(int32_t page);
  bool shared(int32_t page) const { return at(page).holders > 1; }
  // A page that somebody holds is kept from now on; `on_taken` is called when its room is needed.
  void keep(int32_t page) { at(page).kept = true; }
  bool kept(int32_t page) const { return at(page).kept; }
  std::function<void(int32_t)> on_taken;

  int64_t count() const { return static_cast<int64_t>(pages_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached() const { return static_cast<int64_t>(unused_.size()); }
  int64_t used() const { return count() - free() - cached(); }
  // With what kept pages would give.
  int64_t free_tokens() const { return (free() + cached()) * kPageTokens; }

 private:
  struct Page {
    int32_t holders = 0;
    bool kept = false;
    std::list<int32_t>::iterator unused;  // place among the kept ones without a holder
  };
  Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }
  const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }
  int32_t take();

  std::vector<Page> pages_;
  std::vector<int32_t> free_;
  std::list<int32_t> unused_;  // the one unused for longest first
};

// Pages of sequences outside the scheduler, given back at the end.
struct PageLease {
  explicit PageLease(KvPages& from) : pages(from) {}
  PageLease(const PageLease&) = delete;
  ~PageLease() {
    for (std::vector<int32_t>& one : held) pages.shrink(one, 0);
  }
  KvPages& pages;
  std::vector<std::vector<int32_t>> held;
};

}  // namespace at_moe
