#include "grammar/masks.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "grammar/hash.h"

namespace at_moe {

namespace {

using Kind = Grammar::Kind;

}  // namespace

Masks::Masks(Automaton& automaton, std::shared_ptr<SetTokensCache> tokens)
    : automaton_(automaton), tokens_(std::move(tokens)), levels_(vocabulary().all().longest + 1) {}

size_t Masks::Hash::operator()(const Key& key) const {
  Hasher hash;
  for (const Reading& reading : key) {
    hash.add(reading.node, reading.stack);
    hash.add(reading.characters, static_cast<int32_t>(reading.character));
  }
  return hash.value();
}

// Two counts of characters are the same to a mask when no token reaches the least or the most from either.
Masks::Key Masks::key_of(const Readings& readings) const {
  Key key = readings.items;
  const auto reach = static_cast<int32_t>(vocabulary().all().longest);
  for (Reading& reading : key) {
    const Grammar::Node& node = automaton_.grammar().node(reading.node);
    if (node.kind != Kind::kString) continue;
    const int32_t enough = std::max(node.least - reach, 0), near_most = std::max(node.most - reach, 0);
    if (reading.characters < enough) reading.characters = 0;
    else if (node.most >= 0 && reading.characters >= node.least && reading.characters < near_most)
      reading.characters = node.least;
  }
  return key;
}

std::shared_ptr<const TokenSet> Masks::of(const Readings& readings) {
  Key key = key_of(readings);
  if (const auto found = kept_.find(key); found != kept_.end()) {
    used_.splice(used_.begin(), used_, found->second.used);
    return found->second.mask;
  }
  std::shared_ptr<const TokenSet> mask = make(readings);
  if (kept_.size() == kKept) {
    const auto oldest = kept_.find(*used_.back());
    used_.pop_back();
    kept_.erase(oldest);
  }
  const auto added = kept_.emplace(std::move(key), Entry{mask, {}}).first;
  used_.push_front(&added->first);
  added->second.used = used_.begin();
  return mask;
}

void Masks::clear() {
  kept_.clear();
  used_.clear();
}

// Between two characters of a string the plain tokens that fit are known. They are all that continue it, but for the
// others, when they all fit or when nothing but strings is read.
std::shared_ptr<const TokenSet> Masks::make(const Readings& readings) {
  auto mask = std::make_shared<TokenSet>(vocabulary().size());
  bool strings_alone = true, all_fit = false;
  int32_t room = 0;
  for (const Reading& reading : readings.items) {
    const Grammar::Node& node = automaton_.grammar().node(reading.node);
    if (node.kind != Kind::kString || reading.character != CharState::kBetween) {
      strings_alone = false;
      continue;
    }
    const int32_t left = node.most < 0 ? vocabulary().longest_plain() : node.most - reading.characters;
    room = std::max(room, left);
    all_fit |= left >= vocabulary().longest_plain();
  }
  const bool plain_known = all_fit || strings_alone;
  if (plain_known) {
    vocabulary().add_plain(all_fit ? -1 : room, *mask);
    walk(vocabulary().others(), readings, {}, *mask);
    return mask;
  }
  std::shared_ptr<const SetTokens> of_span;
  Known known;
  if (const Grammar::Node* span = broadest_span(readings)) {
    of_span = tokens_->of(automaton_.grammar().set(span->set));
    known = {of_span.get(), span->span};
    of_span->add(known.characters, *mask);
  }
  walk(vocabulary().all(), readings, known, *mask);
  return mask;
}

// That of the most characters, then of the greatest length; null when no reading has one.
const Grammar::Node* Masks::broadest_span(const Readings& readings) const {
  const Grammar::Node* broadest = nullptr;
  std::pair<int64_t, uint32_t> most;
  for (const Reading& reading : readings.items) {
    const Grammar::Node& node = automaton_.grammar().node(reading.node);
    if (node.set < 0) continue;
    int64_t characters = 0;
    for (const CharacterRange& range : automaton_.grammar().set(node.set)) characters += range.last - range.first + 1;
    const std::pair size{characters, static_cast<uint32_t>(node.span)};  // -1 is the greatest
    if (broadest && size <= most) continue;
    broadest = &node;
    most = size;
  }
  return broadest;
}

bool Masks::step(Level& from, uint8_t byte, Level& to) {
  to.table = nullptr;
  if (from.table) {
    const int32_t next = (*from.table)[byte];
    if (next == Automaton::kNowhere) return false;
    if (next != Automaton::kElsewhere) {
      to.node = next, to.stack = from.stack, to.table = automaton_.table_of(next);
      if (!to.table) to.readings.items.assign(1, Reading{next, from.stack});
      return true;
    }
    from.readings.items.assign(1, Reading{from.node, from.stack});
  }
  if (!automaton_.step(from.readings, byte, to.readings)) return false;
  if (to.readings.items.size() == 1) {
    const Reading& only = to.readings.items.front();
    to.node = only.node, to.stack = only.stack, to.table = automaton_.table_of(only.node);
  }
  return true;
}

void Masks::walk(const TokenTrie& trie, const Readings& from, Known known, TokenSet& to) {
  int64_t steps = 0;
  levels_[0].readings = from;
  levels_[0].table = nullptr;
  const auto count = static_cast<int32_t>(trie.size());
  for (int32_t at = 0; at < count;) {
    const TokenTrie::Node& node = trie.nodes[static_cast<size_t>(at)];
    if (known.tokens && known.tokens->covers(at, known.characters)) {
      at = node.end;
      continue;
    }
    Level& before = levels_[node.depth - 1u];
    if (!before.table) steps += static_cast<int64_t>(before.readings.items.size());
    if (!step(before, node.byte, levels_[node.depth])) {
      at = node.end;
      continue;
    }
    for (int32_t token : trie.tokens_at(at)) to.add(token);
    ++at;
    if (steps > kMostSteps) fail(Code::kUnsupported, "the schema's alternatives take too long to tell apart");
  }
}

}  // namespace at_moe
