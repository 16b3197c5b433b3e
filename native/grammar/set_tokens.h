// Tokens made of whole characters of a set, as a JSON string has them unescaped. Where any text of the set's characters goes
// on these need no walk.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "grammar/character_set.h"
#include "grammar/vocabulary.h"

namespace at_moe {

class SetTokens {
 public:
  SetTokens(const Vocabulary& vocabulary, CharacterSet set);

  const CharacterSet& set() const { return set_; }
  // Adds those of at most so many characters; -1: all.
  void add(int32_t characters, TokenSet& to) const { tokens_.add(characters, to); }
  // Whether all tokens at and below a node of the trie of all tokens are among those.
  bool covers(int32_t node, int32_t characters) const {
    const uint8_t most = most_[static_cast<size_t>(node)];
    return most != kOther && (characters < 0 || most <= characters);
  }

 private:
  static constexpr uint8_t kOther = 0xFF;

  bool has(int32_t character) const;
  // What the tokens of a node come to.
  struct Text {
    CharState state = CharState::kBetween;
    int32_t character = 0, characters = 0;
  };
  bool step(Text& text, uint8_t byte) const;
  void read_trie(const TokenTrie& trie);

  CharacterSet set_;
  TokensByLength tokens_;
  std::vector<uint8_t>
      most_;  // by node: characters of the longest token at and below it; kOther: not all are of the set
};

// Those of the sets that were used last, of one vocabulary. One thread's.
class SetTokensCache {
 public:
  static constexpr size_t kKept = 32;

  // The vocabulary is prepared.
  explicit SetTokensCache(std::shared_ptr<const Vocabulary> vocabulary) : vocabulary_(std::move(vocabulary)) {}

  const std::shared_ptr<const Vocabulary>& vocabulary() const { return vocabulary_; }
  std::shared_ptr<const SetTokens> of(const CharacterSet& set);

 private:
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::list<std::shared_ptr<const SetTokens>> kept_;  // the latest first
};

}  // namespace at_moe
