#include "addon/read_grammar.h"

namespace at_moe {

std::shared_ptr<const Grammar> read_grammar(const Fields& from) {
  auto table = [&](const char* name) { return from.required_values<int32_t>(name); };
  return std::make_shared<const Grammar>(Grammar::Tables{
      .nodes = table("nodes"),
      .edges = table("edges"),
      .empty = table("empty"),
      .calls = table("calls"),
      .rules = table("rules"),
      .sets = table("sets"),
      .spans = table("spans"),
  });
}

std::shared_ptr<Vocabulary> read_vocabulary(const Fields& from) {
  return std::make_shared<Vocabulary>(from.required_values<uint8_t>("bytes"), from.required_values<int32_t>("offsets"));
}

}  // namespace at_moe
