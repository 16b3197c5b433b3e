// Prompts that begin alike share pages.
//
// The keys of a page follow from its ids, the routing of its rows, and all that is before it. So a page is found by the
// page before it, the number of its routing and its ids, compared as a whole: never by a hash alone. A routing's number
// stands for its description: mixture, version of all weights, controls; and, where the weights of experts are pooled over
// a prompt, that prompt. Then its records are kept as well: an exact repeat uses them again.
#pragma once

#include <array>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/kv_pages.h"
#include "engine/sequence.h"
#include "model/model.h"

namespace at_moe {

// Equal for requests that are routed alike, as long as no weights change.
std::string describe(const RoutingRequest& request);

class PrefixCache {
 public:
  PrefixCache(KvPages& pages, const Model& model);

  // Gives a span its number. `instruction`: the ids its routing is pooled over, if it is.
  void number(RoutingSpan& span, std::string description, std::span<const int32_t> instruction);
  // As `number`, for a span like no other.
  void number_alone(RoutingSpan& span);

  // Shares the pages there are for the context's ids, up to `most` tokens. The last span's routing becomes that of an
  // exact repeat.
  void extend(Context& context, int64_t most);
  // Keeps the context's full pages; where there is one like it already, the context holds that.
  void keep(Context& context);
  // The routing of a span has been pooled.
  void settle(const RoutingSpan& span);
  // A mixture that gets no more requests.
  void forget(const std::shared_ptr<Mixture>& mixture);

 private:
  struct Key {
    int64_t before = 0;  // number of the page before, 0 = none
    int64_t routing = 0;
    std::array<int32_t, kPageTokens> ids{};
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Node {
    int64_t number = 0;  // unlike any other's, ever; 0 = the page is not kept
    Key key;
  };
  struct Routing {
    std::string description;
    int64_t number = 0;
    std::shared_ptr<SequenceRouting> settled;
  };

  uint64_t stamp(const SequenceRouting& routing) const;
  bool current(const RoutingSpan& span) const;
  bool key_of(const Context& context, int64_t index, Key& key) const;
  Node& node(int32_t page) { return nodes_[static_cast<size_t>(page)]; }
  const Node& node(int32_t page) const { return nodes_[static_cast<size_t>(page)]; }
  void drop(int32_t page);

  KvPages& pages_;
  const Model& model_;
  std::vector<Node> nodes_;  // by page
  std::unordered_map<Key, int32_t, Hash> found_;
  std::list<Routing> routings_;  // used last first
  std::unordered_map<std::string_view, std::list<Routing>::iterator> described_;
  std::unordered_map<int64_t, std::list<Routing>::iterator> numbered_;
  std::vector<std::weak_ptr<Mixture>> forgotten_;
  int64_t last_ = 0;
};

}  // namespace at_moe
