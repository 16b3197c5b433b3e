// The bytes of a tokenizer's tokens, laid out so that all that continue a text are found in one walk.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/pass.h"
#include "grammar/json_string.h"

namespace at_moe {

// A set of token ids.
class TokenSet {
 public:
  explicit TokenSet(size_t tokens = 0) : words_((tokens + 31) / 32) {}

  void add(int32_t token) { words_[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32); }
  void add(const TokenSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  bool empty() const;
  const uint32_t* words() const { return words_.data(); }

 private:
  std::vector<uint32_t> words_;
};

// Tokens, each of a number of characters, as a set of those up to any number.
class TokensByLength {
 public:
  // Of so many tokens in all.
  explicit TokensByLength(size_t tokens) : short_(kShort + 1, TokenSet(tokens)) {}

  void insert(int32_t characters, int32_t token);
  // After the last one.
  void finish();
  // Adds those of at most so many characters; -1: all.
  void add(int32_t characters, TokenSet& to) const;
  int32_t longest() const { return longest_; }  // characters

 private:
  static constexpr int32_t kShort = 16;  // characters up to which sets are kept

  std::vector<TokenSet> short_;                    // [n]: those of at most n characters
  std::vector<std::pair<int32_t, int32_t>> long_;  // characters and token of the others, in ascending order
  int32_t longest_ = 0;
};

// Nodes in preorder: the node after one is its first child, `end` is what follows its descendants.
struct TokenTrie {
  struct Node {
    int32_t end = 0;
    int32_t first_token = 0;  // its tokens go up to those of the next node
    uint16_t depth = 0;       // bytes up to and with this one
    uint8_t byte = 0;
  };
  std::vector<Node> nodes;  // and one behind the last
  std::vector<int32_t> tokens;
  size_t longest = 0;  // bytes

  size_t size() const { return nodes.empty() ? 0 : nodes.size() - 1; }
  std::span<const int32_t> tokens_at(int32_t node) const {
    const auto at = static_cast<size_t>(node);
    const auto begin = static_cast<size_t>(nodes[at].first_token), end = static_cast<size_t>(nodes[at + 1].first_token);
    return std::span(tokens).subspan(begin, end - begin);
  }
};

class Vocabulary {
 public:
  static constexpr size_t kLongestToken = 4096;  // bytes; longer ones are never sampled

  // Bytes of token i: [offsets[i], offsets[i + 1]); none: never a part of a text. Throws kInternal for bad offsets.
  Vocabulary(std::vector<uint8_t> bytes, std::vector<int32_t> offsets);
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  // Lays the tokens out; before anything is asked below.
  Pass prepare();

  size_t size() const { return offsets_.size() - 1; }
  std::span<const uint8_t> bytes_of(int32_t token) const;

  // All tokens, and those that are not plain. A plain token is whole characters that a JSON string has unescaped.
  const TokenTrie& all() const { return all_; }
  const TokenTrie& others() const { return others_; }
  // Adds the plain tokens of at most so many characters; -1: all.
  void add_plain(int32_t characters, TokenSet& to) const { plain_.add(characters, to); }
  int32_t longest_plain() const { return plain_.longest(); }  // characters

 private:
  static uint64_t first_bytes(std::span<const uint8_t> bytes);
  static int32_t plain_length(std::span<const uint8_t> bytes);
  Pass lay_out(std::span<const int32_t> sorted, TokenTrie& trie) const;

  std::vector<uint8_t> bytes_;
  std::vector<int32_t> offsets_;
  TokenTrie all_, others_;
  TokensByLength plain_;
};

}  // namespace at_moe
