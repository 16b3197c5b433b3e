// Keys in host memory, of sequences whose pages were given to others: within a budget they come back as they were, where
// else they would be computed again.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace at_moe {

class HostPages {
 public:
  // The keys of a context's first tokens; gives its room back at the end.
  class Saved {
   public:
    Saved(HostPages& owner, int64_t tokens) : owner_(owner), tokens_(tokens) {}
    Saved(const Saved&) = delete;
    ~Saved() { owner_.held_ -= static_cast<int64_t>(pages_.size()); }
    int64_t tokens() const { return tokens_; }

   private:
    friend class HostPages;
    HostPages& owner_;
    int64_t tokens_;
    std::vector<std::vector<char>> pages_;
  };

  HostPages(Backend& backend, const KvPool& pool, size_t bytes);

  // The keys of `tokens` tokens in `pages`; null when there are none or no room.
  std::shared_ptr<Saved> save(const std::vector<int32_t>& pages, int64_t tokens);
  // Fills `pages` from page `from` on.
  void restore(const Saved& saved, const std::vector<int32_t>& pages, int64_t from) const;

  int64_t held() const { return held_; }

 private:
  Backend& backend_;
  const KvPool& pool_;
  int64_t capacity_;
  int64_t held_ = 0;
};

}  // namespace at_moe
