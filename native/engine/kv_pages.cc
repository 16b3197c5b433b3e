#include "engine/kv_pages.h"

namespace at_moe {

KvPages::KvPages(int64_t pages) {
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
}

bool KvPages::grow(std::vector<int32_t>& pages, int64_t tokens) {
  const size_t wanted = static_cast<size_t>(pages_of(tokens));
  if (wanted > pages.size() + free_.size()) return false;
  while (pages.size() < wanted) {
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void KvPages::shrink(std::vector<int32_t>& pages, int64_t tokens) {
  const size_t wanted = static_cast<size_t>(pages_of(tokens));
  while (pages.size() > wanted) {
    free_.push_back(pages.back());
    pages.pop_back();
  }
}

}  // namespace at_moe
