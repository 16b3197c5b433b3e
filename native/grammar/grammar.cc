#include "grammar/grammar.h"

#include "core/status.h"

namespace at_moe {

namespace {

constexpr size_t kNodeFields = 7, kEdgeFields = 3, kCallFields = 2;

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

Grammar::Grammar(std::span<const int32_t> nodes, std::span<const int32_t> edges, std::span<const int32_t> empty,
                 std::span<const int32_t> calls, std::span<const int32_t> rules)
    : empty_(empty.begin(), empty.end()), rules_(rules.begin(), rules.end()) {
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
  require(!rules_.empty(), "grammar: no rules");
  for (int32_t start : rules_) check_index(start, count);
  for (int32_t rule = 0; rule < static_cast<int32_t>(rules_.size()); ++rule) check_start(rule);
}

void Grammar::check_start(int32_t rule) const {
  std::vector<bool> seen(nodes_.size());
  std::vector<int32_t> open{start_of(rule)};
  while (!open.empty()) {
    const int32_t at = open.back();
    open.pop_back();
    if (seen[static_cast<size_t>(at)]) continue;
    seen[static_cast<size_t>(at)] = true;
    require(node(at).kind != Kind::kAccept, "grammar: rule ", rule, " may be empty");
    for (const Call& call : node(at).calls) {
      require(call.rule > rule, "grammar: rule ", rule, " begins with rule ", call.rule);
    }
    open.insert(open.end(), node(at).empty.begin(), node(at).empty.end());
  }
}

}  // namespace at_moe
