#include "engine/constraints.h"

#include "core/status.h"

namespace at_moe {

std::shared_ptr<Constraint> Constraints::at(int64_t number) {
  const auto found = entries_.find(number);
  require(found != entries_.end(), "there is no grammar ", number);
  require(has_vocabulary(), "a grammar needs the vocabulary");
  Entry& entry = found->second;
  if (!entry.constraint) entry.constraint = std::make_shared<Constraint>(entry.grammar, tokens_);
  return entry.constraint;
}

}  // namespace at_moe
