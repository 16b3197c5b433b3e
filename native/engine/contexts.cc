#include "engine/contexts.h"

#include <utility>

#include "core/status.h"

namespace at_moe {

const Context* Contexts::find(int64_t session) const {
  const auto entry = entries_.find(session);
  if (entry == entries_.end()) return nullptr;
  if (entry->second.busy) fail(Code::kBusy, "the session has a request in flight");
  return &entry->second.context;
}

Context Contexts::take(int64_t session) {
  Entry& entry = entries_[session];
  entry.busy = true;
  return std::exchange(entry.context, {});
}

void Contexts::put_back(int64_t session, Context context) {
  Entry& entry = entries_[session];
  if (entry.released) {
    pages_.shrink(context.pages, 0);
    entries_.erase(session);
    return;
  }
  pages_.shrink(context.pages, context.computed);
  entry.context = std::move(context);
  entry.busy = false;
  entry.used = ++clock_;
}

void Contexts::release(int64_t session) {
  const auto entry = entries_.find(session);
  if (entry == entries_.end()) return;
  if (entry->second.busy) {
    entry->second.released = true;
    return;
  }
  pages_.shrink(entry->second.context.pages, 0);
  entries_.erase(entry);
}

Context* Contexts::oldest_idle() {
  Entry* oldest = nullptr;
  for (auto& [session, entry] : entries_) {
    if (entry.busy || entry.context.pages.empty()) continue;
    if (!oldest || entry.used < oldest->used) oldest = &entry;
  }
  return oldest ? &oldest->context : nullptr;
}

}  // namespace at_moe
