// Which tokens continue a text. A mask takes one walk over the vocabulary's trie, but for the tokens of which it is known
// from their characters alone, and is kept by what it depends on: the readings, with counts of characters only as far as a
// token reaches.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "grammar/automaton.h"
#include "grammar/set_tokens.h"
#include "grammar/vocabulary.h"

namespace at_moe {

class Masks {
 public:
  static constexpr size_t kKept = 256;                     // masks, those used last
  static constexpr int64_t kMostSteps = int64_t{1} << 21;  // of readings in one walk; more: kUnsupported

  Masks(Automaton& automaton, std::shared_ptr<SetTokensCache> tokens);

  std::shared_ptr<const TokenSet> of(const Readings& readings);
  // After the automaton forgot its stacks.
  void clear();

  const Vocabulary& vocabulary() const { return *tokens_->vocabulary(); }

 private:
  using Key = std::vector<Reading>;
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Entry {
    std::shared_ptr<const TokenSet> mask;
    std::list<const Key*>::iterator used;
  };

  // The readings behind the bytes up to a depth of the trie. `table`: there is one, at `node`, whose table this is, and
  // `readings` is only made when it is needed.
  struct Level {
    const Automaton::Table* table = nullptr;
    int32_t node = 0, stack = 0;
    Readings readings;
  };

  Key key_of(const Readings& readings) const;
  std::shared_ptr<const TokenSet> make(const Readings& readings);
  bool step(Level& from, uint8_t byte, Level& to);
  const Grammar::Node* broadest_span(const Readings& readings) const;
  // `known`: subtrees of tokens that are in the mask already.
  struct Known {
    const SetTokens* tokens = nullptr;
    int32_t characters = 0;
  };
  void walk(const TokenTrie& trie, const Readings& from, Known known, TokenSet& to);

  Automaton& automaton_;
  std::shared_ptr<SetTokensCache> tokens_;
  std::unordered_map<Key, Entry, Hash> kept_;
  std::list<const Key*> used_;  // the latest first
  std::vector<Level> levels_;   // of a walk, by depth
};

}  // namespace at_moe
