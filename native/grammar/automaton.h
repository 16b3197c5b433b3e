// Reads a text byte by byte by a grammar: a pushdown automaton that follows all readings of the text at once.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/json_string.h"
#include "grammar/stacks.h"

namespace at_moe {

// One reading: a node that reads, and in a JSON string what has been read of it.
struct Reading {
  int32_t node = 0, stack = 0;
  int32_t characters = 0;  // counted up to the node's `most`, or its `least` where there is no most
  CharState character = CharState::kBetween;
  bool operator==(const Reading&) const = default;
  bool operator<(const Reading& other) const {
    return std::tie(node, stack, characters, character) <
           std::tie(other.node, other.stack, other.characters, other.character);
  }
};

struct Readings {
  std::vector<Reading> items;  // in ascending order
  bool complete = false;       // the text is in the language
  bool dead() const { return items.empty() && !complete; }
};

class Automaton {
 public:
  // More readings of one text are an error (kUnsupported): what they cost grows with their number.
  static constexpr size_t kMaxReadings = 1024;

  // By byte: the one node that it leads to, when that only reads; kNowhere; or kElsewhere, for which it takes a step.
  using Table = std::array<int32_t, 256>;
  static constexpr int32_t kNowhere = -1, kElsewhere = -2;

  explicit Automaton(std::shared_ptr<const Grammar> grammar);

  void start(Readings& to);
  // `to` is another one than `from`. False when no reading is left.
  bool step(const Readings& from, uint8_t byte, Readings& to);

  // Null for strings, and for nodes beyond those that tables are kept of.
  const Table* table_of(int32_t node);

  const Grammar& grammar() const { return *grammar_; }
  size_t stacks() const { return stacks_.size(); }
  // Readings from before are of no use afterwards.
  void forget_stacks() { stacks_.clear(); }

 private:
  static constexpr size_t kMaxTables = 4096;
  struct PendingCall {
    int32_t rule;
    Frame from;
  };

  void begin(Readings& to);
  void end(Readings& to);
  void enter(int32_t node, int32_t stack, Readings& to);
  void visit(Frame at, Readings& to);
  void run_calls(Readings& to);
  void step_string(const Reading& from, const Grammar::Node& node, uint8_t byte, Readings& to);

  std::shared_ptr<const Grammar> grammar_;
  Stacks stacks_;
  std::vector<Frame> open_, visited_;
  std::vector<uint32_t> visited_in_;  // by node: the last step that visited it
  uint32_t step_ = 0;
  std::vector<PendingCall> calls_;
  std::vector<std::unique_ptr<Table>> tables_;  // by node, made at the first use
  size_t made_tables_ = 0;
};

}  // namespace at_moe
