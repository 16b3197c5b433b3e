// Which pages of the KV pool are free.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/ops/attention.h"

namespace at_moe {

class KvPages {
 public:
  explicit KvPages(int64_t pages);

  static int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

  // Grows `pages` to hold `tokens`. False, and no change, when there are not enough.
  bool grow(std::vector<int32_t>& pages, int64_t tokens);
  // Gives back what `tokens` tokens do not need.
  void shrink(std::vector<int32_t>& pages, int64_t tokens);

  int64_t free_tokens() const { return static_cast<int64_t>(free_.size()) * kPageTokens; }

 private:
  std::vector<int32_t> free_;
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
