// A language of JSON texts as rules of nodes: plain data, made by lib/grammar from a schema and checked here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "grammar/character_set.h"

namespace at_moe {

// A node reads a byte by an edge, calls a rule and goes on at the call's target, goes on without a byte (`empty`), ends its
// rule (`accepts`), or reads the characters of a JSON string and its closing quote.
class Grammar {
 public:
  enum class Kind : int32_t { kPlain, kAccept, kString };
  struct Edge {
    uint8_t low = 0, high = 0;  // bytes, both included
    int32_t target = 0;
  };
  struct Call {
    int32_t rule = 0, target = 0;
  };
  struct Node {
    std::span<const Edge> edges;
    std::span<const int32_t> empty;
    std::span<const Call> calls;
    Kind kind = Kind::kPlain;
    int32_t least = 0, most = -1;  // kString: characters; most -1: any number
    int32_t target = -1;           // kString: after the closing quote
    int32_t set = -1;              // every text of up to `span` of the set's characters goes on; -1: none is known
    int32_t span = -1;             // -1: any number
    // Nothing happens here before the next byte.
    bool reads_only() const { return kind != Kind::kAccept && empty.empty() && calls.empty(); }
  };

  // nodes: [end of edges, end of empty, end of calls, kind, least, most, target] each; edges: [low, high, target] each;
  // calls: [rule, target] each; rules: first nodes, the root's first; sets: [set, first, last character] each, in ascending
  // order; spans: [node, set, most characters] each. Throws kInternal for anything out of bounds, for a rule that is empty,
  // and for one that calls itself, or one before it, without a byte in between.
  struct Tables {
    std::vector<int32_t> nodes, edges, empty, calls, rules, sets, spans;
  };
  explicit Grammar(const Tables& tables);
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  const Node& node(int32_t index) const { return nodes_[static_cast<size_t>(index)]; }
  int32_t start_of(int32_t rule) const { return rules_[static_cast<size_t>(rule)]; }
  size_t size() const { return nodes_.size(); }
  const CharacterSet& set(int32_t index) const { return sets_[static_cast<size_t>(index)]; }

 private:
  void read_nodes(const Tables& tables);
  void read_spans(const Tables& tables);
  void check_starts() const;

  std::vector<Edge> edges_;
  std::vector<int32_t> empty_;
  std::vector<Call> calls_;
  std::vector<Node> nodes_;
  std::vector<int32_t> rules_;
  std::vector<CharacterSet> sets_;
};

}  // namespace at_moe
