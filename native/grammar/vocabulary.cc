#include "grammar/vocabulary.h"

#include <algorithm>

#include "core/status.h"

namespace at_moe {

namespace {

constexpr size_t kUnit = 16384;  // tokens laid out between two units

}  // namespace

bool TokenSet::empty() const {
  return std::ranges::all_of(words_, [](uint32_t word) { return word == 0; });
}

Vocabulary::Vocabulary(std::vector<uint8_t> bytes, std::vector<int32_t> offsets)
    : bytes_(std::move(bytes)), offsets_(std::move(offsets)), plain_(offsets_.empty() ? 0 : offsets_.size() - 1) {
  require(!offsets_.empty() && offsets_.front() == 0 && static_cast<size_t>(offsets_.back()) == bytes_.size() &&
              std::ranges::is_sorted(offsets_),
          "vocabulary: bad offsets");
}

std::span<const uint8_t> Vocabulary::bytes_of(int32_t token) const {
  const auto begin = static_cast<size_t>(offsets_[static_cast<size_t>(token)]);
  const auto end = static_cast<size_t>(offsets_[static_cast<size_t>(token) + 1]);
  return std::span(bytes_).subspan(begin, end - begin);
}

// As a number, shorter ones before longer ones that begin with them.
uint64_t Vocabulary::first_bytes(std::span<const uint8_t> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(value); ++i) value = value << 8 | (i < bytes.size() ? bytes[i] : 0);
  return value;
}

// Characters of a plain token; -1 for others.
int32_t Vocabulary::plain_length(std::span<const uint8_t> bytes) {
  int32_t characters = 0;
  CharState state = CharState::kBetween;
  for (uint8_t byte : bytes) {
    state = next_char_state(state, byte);
    if (state == CharState::kDead || state == CharState::kEscape) return -1;
    characters += state == CharState::kBetween;
  }
  return state == CharState::kBetween ? characters : -1;
}

Pass Vocabulary::prepare() {
  std::vector<std::pair<uint64_t, int32_t>> by_bytes;  // the first eight, in their order
  for (int32_t token = 0; token < static_cast<int32_t>(size()); ++token) {
    const auto bytes = bytes_of(token);
    if (bytes.empty() || bytes.size() > kLongestToken) continue;
    by_bytes.push_back({first_bytes(bytes), token});
    if (const int32_t length = plain_length(bytes); length > 0) plain_.insert(length, token);
  }
  co_await unit_end();
  std::ranges::sort(by_bytes, [this](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first
                              : std::ranges::lexicographical_compare(bytes_of(a.second), bytes_of(b.second));
  });
  std::vector<int32_t> sorted;
  sorted.reserve(by_bytes.size());
  for (const auto& entry : by_bytes) sorted.push_back(entry.second);
  co_await unit_end();
  co_await lay_out(sorted, all_);
  co_await unit_end();
  std::erase_if(sorted, [this](int32_t token) { return plain_length(bytes_of(token)) > 0; });
  co_await lay_out(sorted, others_);
  plain_.finish();
}

Pass Vocabulary::lay_out(std::span<const int32_t> sorted, TokenTrie& trie) const {
  std::vector<size_t> path;  // nodes of the bytes so far
  std::span<const uint8_t> before;
  auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) trie.nodes[path.back()].end = static_cast<int32_t>(trie.nodes.size());
  };
  for (int32_t token : sorted) {
    const auto bytes = bytes_of(token);
    const auto shared = static_cast<size_t>(std::ranges::mismatch(before, bytes).in2 - bytes.begin());
    close(shared);
    for (size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(trie.nodes.size());
      trie.nodes.push_back({0, static_cast<int32_t>(trie.tokens.size()), static_cast<uint16_t>(i + 1), bytes[i]});
    }
    trie.tokens.push_back(token);
    trie.longest = std::max(trie.longest, bytes.size());
    before = bytes;
    if (trie.tokens.size() % kUnit == 0) co_await unit_end();
  }
  close(0);
  trie.nodes.push_back({0, static_cast<int32_t>(trie.tokens.size())});
}

void TokensByLength::insert(int32_t characters, int32_t token) {
  longest_ = std::max(longest_, characters);
  if (characters <= kShort) short_[static_cast<size_t>(characters)].add(token);
  else long_.push_back({characters, token});
}

void TokensByLength::finish() {
  for (size_t length = 1; length < short_.size(); ++length) short_[length].add(short_[length - 1]);
  std::ranges::sort(long_);
}

void TokensByLength::add(int32_t characters, TokenSet& to) const {
  const bool all = characters < 0;
  to.add(short_[static_cast<size_t>(all ? kShort : std::min(characters, kShort))]);
  for (const auto& [length, token] : long_) {
    if (!all && length > characters) break;
    to.add(token);
  }
}

}  // namespace at_moe
