#include "grammar/set_tokens.h"

#include <algorithm>

namespace at_moe {

SetTokens::SetTokens(const Vocabulary& vocabulary, CharacterSet set)
    : set_(std::move(set)), tokens_(vocabulary.size()) {
  read_trie(vocabulary.all());
}

bool SetTokens::has(int32_t character) const {
  const auto after = std::ranges::upper_bound(set_, character, {}, &CharacterRange::first);
  return after != set_.begin() && character <= std::prev(after)->last;
}

// False for what is no part of such a token.
bool SetTokens::step(Text& text, uint8_t byte) const {
  const bool first = text.state == CharState::kBetween;
  text.state = next_char_state(text.state, byte);
  if (text.state == CharState::kDead || text.state == CharState::kEscape) return false;
  if (!first) text.character = text.character << 6 | (byte & 0x3F);
  else if (byte < 0x80) text.character = byte;
  else text.character = byte & (byte < 0xE0 ? 0x1F : byte < 0xF0 ? 0x0F : 0x07);
  if (text.state != CharState::kBetween) return true;
  ++text.characters;
  return has(text.character);
}

void SetTokens::read_trie(const TokenTrie& trie) {
  const auto count = static_cast<int32_t>(trie.size());
  most_.assign(trie.size(), kOther);
  std::vector<Text> texts(trie.longest + 1);  // by depth
  std::vector<int32_t> path(trie.longest + 1, -1), read, parents;
  for (int32_t at = 0; at < count;) {
    const TokenTrie::Node& node = trie.nodes[static_cast<size_t>(at)];
    Text& text = texts[node.depth] = texts[node.depth - 1u];
    read.push_back(at);
    parents.push_back(path[node.depth - 1u]);
    path[node.depth] = at;
    if (!step(text, node.byte)) {
      at = node.end;
      continue;
    }
    const std::span<const int32_t> tokens = trie.tokens_at(at);
    const bool whole = text.state == CharState::kBetween;
    if (whole) {
      for (int32_t token : tokens) tokens_.insert(text.characters, token);
    }
    if (tokens.empty()) most_[static_cast<size_t>(at)] = 0;
    else if (whole && text.characters < kOther) most_[static_cast<size_t>(at)] = static_cast<uint8_t>(text.characters);
    ++at;
  }
  tokens_.finish();
  for (size_t i = read.size(); i-- > 0;) {
    if (parents[i] < 0) continue;
    uint8_t& above = most_[static_cast<size_t>(parents[i])];
    above = std::max(above, most_[static_cast<size_t>(read[i])]);
  }
}

std::shared_ptr<const SetTokens> SetTokensCache::of(const CharacterSet& set) {
  const auto found = std::ranges::find_if(kept_, [&](const auto& kept) { return kept->set() == set; });
  if (found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
    return kept_.front();
  }
  if (kept_.size() == kKept) kept_.pop_back();
  kept_.push_front(std::make_shared<const SetTokens>(*vocabulary_, set));
  return kept_.front();
}

}  // namespace at_moe
