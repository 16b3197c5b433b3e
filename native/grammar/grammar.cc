#include "grammar/grammar.h"

#include <utility>

#include "core/status.h"

namespace at_moe {

namespace {

constexpr size_t kNodeFields = 7, kEdgeFields = 3, kCallFields = 2, kSetFields = 3, kSpanFields = 3;

void check_index(int32_t index, size_t size) {
  require(index >= 0 && static_cast<size_t>(index) < size, "grammar: index ", index, " of ", size);
}

// The part of `all` from `begin` to `end`, which becomes the next begin.
template <typename T>
std::span<const T> take(const std::vector<T>& all, int32_t& begin, int32_t end) {
  require(end >= begin && static_cast<size_t>(end) <= all.size(), "grammar: a list ends at ", end);
  const auto part = std::span(all).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  begin = end;
  return part;
}

}  // namespace

Grammar::Grammar(const Tables& tables) : empty_(tables.empty), rules_(tables.rules) {
  read_nodes(tables);
  read_spans(tables);
  require(!rules_.empty(), "grammar: no rules");
  for (int32_t start : rules_) check_index(start, size());
  check_starts();
}

void Grammar::read_nodes(const Tables& tables) {
  const auto& [nodes, edges, empty, calls, rules, sets, spans] = tables;
  require(nodes.size() % kNodeFields == 0 && edges.size() % kEdgeFields == 0 && calls.size() % kCallFields == 0,
          "grammar: incomplete tables");
  const size_t count = nodes.size() / kNodeFields;
  for (size_t i = 0; i < edges.size(); i += kEdgeFields) {
    require(edges[i] >= 0 && edges[i] <= edges[i + 1] && edges[i + 1] <= 0xFF, "grammar: no range of bytes");
    check_index(edges[i + 2], count);
    edges_.push_back({static_cast<uint8_t>(edges[i]), static_cast<uint8_t>(edges[i + 1]), edges[i + 2]});
  }
  for (int32_t target : empty_) check_index(target, count);
  for (size_t i = 0; i < calls.size(); i += kCallFields) {
    check_index(calls[i], rules_.size());
    check_index(calls[i + 1], count);
    calls_.push_back({calls[i], calls[i + 1]});
  }
  int32_t edge = 0, jump = 0, call = 0;
  for (size_t i = 0; i < nodes.size(); i += kNodeFields) {
    Node node{take(edges_, edge, nodes[i]), take(empty_, jump, nodes[i + 1]), take(calls_, call, nodes[i + 2])};
    require(nodes[i + 3] >= 0 && nodes[i + 3] <= static_cast<int32_t>(Kind::kString), "grammar: kind ", nodes[i + 3]);
    node.kind = static_cast<Kind>(nodes[i + 3]);
    if (node.kind == Kind::kString) {
      node.least = nodes[i + 4], node.most = nodes[i + 5], node.target = nodes[i + 6];
      require(node.least >= 0 && (node.most == -1 || node.most >= node.least), "grammar: a string's length");
      require(node.reads_only() && node.edges.empty(), "grammar: a string reads nothing else");
      check_index(node.target, count);
    }
    nodes_.push_back(node);
  }
}

void Grammar::read_spans(const Tables& tables) {
  require(tables.sets.size() % kSetFields == 0 && tables.spans.size() % kSpanFields == 0, "grammar: incomplete spans");
  for (size_t i = 0; i < tables.sets.size(); i += kSetFields) {
    const int32_t set = tables.sets[i], first = tables.sets[i + 1], last = tables.sets[i + 2];
    if (set == static_cast<int32_t>(sets_.size())) sets_.emplace_back();
    require(set + 1 == static_cast<int32_t>(sets_.size()), "grammar: set ", set, " is out of order");
    CharacterSet& ranges = sets_.back();
    require(first >= 0 && first <= last && (ranges.empty() || first > ranges.back().last), "grammar: a set's ranges");
    ranges.push_back({first, last});
  }
  for (size_t i = 0; i < tables.spans.size(); i += kSpanFields) {
    check_index(tables.spans[i], size());
    check_index(tables.spans[i + 1], sets_.size());
    Node& node = nodes_[static_cast<size_t>(tables.spans[i])];
    require(node.kind != Kind::kString && tables.spans[i + 2] >= -1, "grammar: a span of node ", tables.spans[i]);
    node.set = tables.spans[i + 1], node.span = tables.spans[i + 2];
  }
}

void Grammar::check_starts() const {
  std::vector<int32_t> seen_by(nodes_.size(), -1);
  std::vector<int32_t> open;
  for (int32_t rule = 0; rule < static_cast<int32_t>(rules_.size()); ++rule) {
    open.push_back(start_of(rule));
    while (!open.empty()) {
      const int32_t at = open.back();
      open.pop_back();
      if (std::exchange(seen_by[static_cast<size_t>(at)], rule) == rule) continue;
      require(node(at).kind != Kind::kAccept, "grammar: rule ", rule, " may be empty");
      for (const Call& call : node(at).calls) {
        require(call.rule > rule, "grammar: rule ", rule, " begins with rule ", call.rule);
      }
      open.insert(open.end(), node(at).empty.begin(), node(at).empty.end());
    }
  }
}

}  // namespace at_moe
