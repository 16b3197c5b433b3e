#include "engine/prefix_cache.h"

#include <algorithm>

namespace at_moe {

namespace {

constexpr size_t kMostRoutings = 512;

template <typename T>
void append(std::string& text, const T& value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
void append(std::string& text, const std::vector<T>& values) {
  append(text, values.size());
  text.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

std::string describe(const RoutingRequest& request) {
  std::string text;
  append(text, request.kind);
  append(text, request.mixture);
  append(text, request.options.has_value());
  if (const auto& options = request.options) {
    append(text, options->conditional);
    append(text, options->group_top_k);
    append(text, options->expert_top_k);
    append(text, options->group_top_p);
    append(text, options->expert_top_p);
    append(text, options->group_temperature);
    append(text, options->expert_temperature);
    append(text, options->renormalize);
  }
  append(text, request.controls.group_bias);
  append(text, request.controls.expert_bias);
  append(text, request.controls.group_denied);
  append(text, request.controls.expert_denied);
  append(text, request.controls.group_set);
  append(text, request.controls.expert_set);
  append(text, request.selection);
  append(text, request.weights);
  append(text, request.alone);
  return text;
}

size_t PrefixCache::Hash::operator()(const Key& key) const {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(&key), sizeof(key)});
}

PrefixCache::PrefixCache(KvPages& pages, const Model& model)
    : pages_(pages), model_(model), nodes_(static_cast<size_t>(pages.count())) {
  pages_.on_taken = [this](int32_t page) { drop(page); };
}

void PrefixCache::drop(int32_t page) {
  found_.erase(node(page).key);
  node(page) = {};
}

uint64_t PrefixCache::stamp(const SequenceRouting& routing) const {
  return model_.version() + (routing.mixture ? routing.mixture->version() : 0);
}

bool PrefixCache::current(const RoutingSpan& span) const {
  return span.number != 0 && span.stamp == stamp(*span.routing);
}

void PrefixCache::number(RoutingSpan& span, std::string description, std::span<const int32_t> instruction) {
  span.stamp = stamp(*span.routing);
  append(description, span.stamp);
  append(description, std::vector<int32_t>(instruction.begin(), instruction.end()));
  if (const auto known = described_.find(description); known != described_.end()) {
    routings_.splice(routings_.begin(), routings_, known->second);
  } else {
    routings_.push_front({std::move(description), ++last_, nullptr});
    numbered_[last_] = described_[routings_.front().description] = routings_.begin();
  }
  span.number = routings_.front().number;
  if (routings_.size() <= kMostRoutings) return;
  described_.erase(routings_.back().description);
  numbered_.erase(routings_.back().number);
  routings_.pop_back();
}

void PrefixCache::number_alone(RoutingSpan& span) {
  span.stamp = stamp(*span.routing);
  span.number = ++last_;
}

void PrefixCache::settle(const RoutingSpan& span) {
  const auto known = numbered_.find(span.number);
  if (known == numbered_.end() || !current(span)) return;
  const bool gone = std::any_of(forgotten_.begin(), forgotten_.end(),
                                [&](const auto& mixture) { return mixture.lock() == span.routing->mixture; });
  if (!gone) known->second->settled = span.routing;
}

void PrefixCache::forget(const std::shared_ptr<Mixture>& mixture) {
  std::erase_if(forgotten_, [](const auto& one) { return one.expired(); });
  forgotten_.push_back(mixture);
  for (Routing& routing : routings_) {
    if (routing.settled && routing.settled->mixture == mixture) routing.settled.reset();
  }
}

// False where the page's rows differ in their routing, or in weights that are not those of now.
bool PrefixCache::key_of(const Context& context, int64_t index, Key& key) const {
  const int64_t begin = index * kPageTokens;
  const size_t first = context.span_at(begin), last = context.span_at(begin + kPageTokens - 1);
  for (size_t span = first; span <= last; ++span) {
    if (!current(context.spans[span]) || context.spans[span].number != context.spans[first].number) return false;
  }
  key.before = index > 0 ? node(context.pages[static_cast<size_t>(index - 1)]).number : 0;
  if (index > 0 && key.before == 0) return false;
  key.routing = context.spans[first].number;
  std::copy_n(context.ids.begin() + begin, kPageTokens, key.ids.begin());
  return true;
}

void PrefixCache::extend(Context& context, int64_t most) {
  RoutingSpan& last = context.spans.back();
  if (last.routing->mode == SequenceRouting::Mode::kPool && current(last)) {
    const auto known = numbered_.find(last.number);
    if (known != numbered_.end() && known->second->settled) last.routing = known->second->settled;
  }
  if (last.routing->mode == SequenceRouting::Mode::kPool) most = std::min(most, last.begin);
  Key key;
  for (int64_t index = context.computed / kPageTokens; (index + 1) * kPageTokens <= most; ++index) {
    if (!key_of(context, index, key)) return;
    const auto found = found_.find(key);
    if (found == found_.end()) return;
    pages_.share(found->second);
    context.pages.push_back(found->second);
    context.computed += kPageTokens;
  }
}

void PrefixCache::keep(Context& context) {
  const int64_t full = context.computed / kPageTokens;
  int64_t index = full;
  while (index > 0 && node(context.pages[static_cast<size_t>(index - 1)]).number == 0) --index;
  Key key;
  for (; index < full && key_of(context, index, key); ++index) {
    int32_t& page = context.pages[static_cast<size_t>(index)];
    const auto [found, added] = found_.emplace(key, page);
    if (added) {
      node(page) = {++last_, key};
      pages_.keep(page);
    } else {
      pages_.share(found->second);
      pages_.give_back(page);
      page = found->second;
    }
  }
}

}  // namespace at_moe
