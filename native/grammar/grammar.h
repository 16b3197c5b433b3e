// A language of JSON texts as rules of nodes: plain data, made by lib/grammar from a schema and checked here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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
    // Nothing happens here before the next byte.
    bool reads_only() const { return kind != Kind::kAccept && empty.empty() && calls.empty(); }
  };

  // nodes: [end of edges, end of empty, end of calls, kind, least, most, target] each; edges: [low, high, target] each;
  // calls: [rule, target] each; rules: first nodes, the root's first. Throws kInternal for anything out of bounds, for a
  // rule that is empty, and for one that calls itself, or one before it, without a byte in between.
  Grammar(std::span<const int32_t> nodes, std::span<const int32_t> edges, std::span<const int32_t> empty,
          std::span<const int32_t> calls, std::span<const int32_t> rules);
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  const Node& node(int32_t index) const { return nodes_[static_cast<size_t>(index)]; }
  int32_t start_of(int32_t rule) const { return rules_[static_cast<size_t>(rule)]; }
  size_t size() const { return nodes_.size(); }

 private:
  void check_start(int32_t rule) const;

  std::vector<Edge> edges_;
  std::vector<int32_t> empty_;
  std::vector<Call> calls_;
  std::vector<Node> nodes_;
  std::vector<int32_t> rules_;
};

}  // namespace at_moe
