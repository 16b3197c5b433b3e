#include "engine/host_pages.h"

#include "engine/kv_pages.h"

namespace at_moe {

namespace {

size_t page_bytes(const KvPool& pool) {
  size_t bytes = 0;
  for (const KvPool::Part& part : pool.parts(0)) bytes += part.bytes;
  return bytes;
}

}  // namespace

HostPages::HostPages(Backend& backend, const KvPool& pool, size_t bytes)
    : backend_(backend), pool_(pool), capacity_(static_cast<int64_t>(bytes / page_bytes(pool))) {}

std::shared_ptr<HostPages::Saved> HostPages::save(const std::vector<int32_t>& pages, int64_t tokens) {
  const int64_t count = KvPages::pages_of(tokens);
  if (count == 0 || held_ + count > capacity_) return nullptr;
  auto saved = std::make_shared<Saved>(*this, tokens);
  const size_t bytes = page_bytes(pool_);
  for (int64_t i = 0; i < count; ++i) {
    char* to = saved->pages_.emplace_back(bytes).data();
    ++held_;
    for (const KvPool::Part& part : pool_.parts(pages[static_cast<size_t>(i)])) {
      backend_.download(to, part.data, part.bytes);
      to += part.bytes;
    }
  }
  return saved;
}

void HostPages::restore(const Saved& saved, const std::vector<int32_t>& pages, int64_t from) const {
  for (size_t i = static_cast<size_t>(from); i < saved.pages_.size(); ++i) {
    const char* at = saved.pages_[i].data();
    for (const KvPool::Part& part : pool_.parts(pages[i])) {
      backend_.upload(part.data, at, part.bytes);
      at += part.bytes;
    }
  }
}

}  // namespace at_moe
