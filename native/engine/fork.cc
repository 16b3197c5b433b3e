// The scheduler's sequences that share keys: n texts for one prompt, and copies on writing.
#include <algorithm>

#include "engine/scheduler.h"

namespace at_moe {

// One for each text, with the seed of the first + its index.
void Scheduler::add_siblings(Sequence& first, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    auto sibling = std::make_shared<Sequence>(first);
    sibling->context = {};
    sibling->siblings.clear();
    sibling->id += i;
    sibling->sampling.seed += static_cast<uint64_t>(i);
    first.siblings.push_back(std::move(sibling));
  }
  first.texts = count;
}

// The siblings go on from the prompt's keys and its last row's logits.
void Scheduler::fork(Sequence& first, const Matrix& logits) {
  for (const Shared& sibling : std::exchange(first.siblings, {})) {
    sibling->carrier.reset();
    if (sibling->done) continue;
    sibling->context = share(first.context);
    sibling->usage = first.usage;
    sibling->traced = first.traced;
    sibling->started = true;
    take_samples({sibling}, logits);
    if (!sibling->done && sibling->place == Place::kNone) put(sibling, Place::kQueue);
  }
}

Context Scheduler::share(const Context& context) {
  Context copy = context;
  copy.pages.resize(static_cast<size_t>(KvPages::pages_of(copy.computed)));
  for (const int32_t page : copy.pages) pages_.share(page);
  own_last_page(copy);
  return copy;
}

// A page that is written to has one holder and is not kept for others.
void Scheduler::own_last_page(Context& context) {
  pages_.shrink(context.pages, context.computed);
  const int64_t full = context.computed / kPageTokens;
  if (context.computed % kPageTokens == 0) return;
  const int32_t page = context.pages.back();
  if (!pages_.shared(page) && !pages_.kept(page)) return;
  context.pages.pop_back();
  if (pages_.grow(context.pages, context.computed)) {
    const std::vector<KvPool::Part> from = pool_->parts(page), to = pool_->parts(context.pages.back());
    for (size_t i = 0; i < to.size(); ++i) model_.backend().copy(to[i].data, from[i].data, to[i].bytes);
  } else {
    context.computed = full * kPageTokens;
  }
  pages_.give_back(page);
}

}  // namespace at_moe
