#include "engine/kv_pages.h"

namespace at_moe {

KvPages::KvPages(int64_t pages) : pages_(static_cast<size_t>(pages)) {
  free_.reserve(pages_.size());
  for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
}

int32_t KvPages::take() {
  int32_t page = 0;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    page = unused_.front();
    unused_.pop_front();
    at(page).kept = false;
    on_taken(page);
  }
  at(page).holders = 1;
  return page;
}

bool KvPages::grow(std::vector<int32_t>& pages, int64_t tokens) {
  const int64_t wanted = pages_of(tokens);
  if (wanted > static_cast<int64_t>(pages.size()) + free() + cached()) return false;
  while (static_cast<int64_t>(pages.size()) < wanted) pages.push_back(take());
  return true;
}

void KvPages::shrink(std::vector<int32_t>& pages, int64_t tokens) {
  const size_t wanted = static_cast<size_t>(pages_of(tokens));
  while (pages.size() > wanted) {
    give_back(pages.back());
    pages.pop_back();
  }
}

void KvPages::share(int32_t page) {
  if (at(page).holders++ == 0) unused_.erase(at(page).unused);
}

void KvPages::give_back(int32_t page) {
  if (--at(page).holders > 0) return;
  if (at(page).kept) {
    at(page).unused = unused_.insert(unused_.end(), page);
  } else {
    free_.push_back(page);
  }
}

}  // namespace at_moe
