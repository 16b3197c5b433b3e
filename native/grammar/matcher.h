// The text of one sequence against a compiled grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "grammar/masks.h"

namespace at_moe {

// A grammar over a vocabulary, shared by the sequences that follow it. One thread's.
class Constraint {
 public:
  Constraint(std::shared_ptr<const Grammar> grammar, std::shared_ptr<SetTokensCache> tokens)
      : automaton(std::move(grammar)), masks(automaton, std::move(tokens)) {}

  Automaton automaton;
  Masks masks;
  int64_t era = 0;  // of the automaton's stacks
};

class Matcher {
 public:
  explicit Matcher(std::shared_ptr<Constraint> constraint);

  // The tokens that may follow, one bit each; `stop_tokens` where the text is complete. Valid until the next call. Throws
  // kUnsupported when there are none.
  const uint32_t* allowed(const std::vector<int32_t>& stop_tokens);
  // Throws kInternal for a token that is not allowed.
  void accept(int32_t token);
  // Nothing can follow.
  bool finished() const { return readings_.complete && readings_.items.empty(); }
  bool complete() const { return readings_.complete; }

 private:
  void read(int32_t token);
  void renew();

  std::shared_ptr<Constraint> constraint_;
  int64_t era_;
  size_t most_stacks_;
  Readings readings_, next_;
  std::vector<int32_t> tokens_;  // accepted
  std::shared_ptr<const TokenSet> mask_;
};

}  // namespace at_moe
