#include "grammar/automaton.h"

#include <algorithm>

#include "core/status.h"

namespace at_moe {

Automaton::Automaton(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)), visited_in_(grammar_->size()), tables_(grammar_->size()) {}

void Automaton::start(Readings& to) {
  begin(to);
  enter(grammar_->start_of(0), Stacks::kBottom, to);
  end(to);
}

bool Automaton::step(const Readings& from, uint8_t byte, Readings& to) {
  begin(to);
  for (const Reading& reading : from.items) {
    const Grammar::Node& node = grammar_->node(reading.node);
    if (node.kind == Grammar::Kind::kString) {
      step_string(reading, node, byte, to);
      continue;
    }
    for (const Grammar::Edge& edge : node.edges) {
      if (byte >= edge.low && byte <= edge.high) enter(edge.target, reading.stack, to);
    }
  }
  end(to);
  return !to.dead();
}

const Automaton::Table* Automaton::table_of(int32_t index) {
  std::unique_ptr<Table>& table = tables_[static_cast<size_t>(index)];
  if (table || made_tables_ == kMaxTables || grammar_->node(index).kind == Grammar::Kind::kString) return table.get();
  ++made_tables_;
  table = std::make_unique<Table>();
  table->fill(kNowhere);
  for (const Grammar::Edge& edge : grammar_->node(index).edges) {
    const int32_t target = grammar_->node(edge.target).reads_only() ? edge.target : kElsewhere;
    for (int byte = edge.low; byte <= edge.high; ++byte) {
      int32_t& next = (*table)[static_cast<size_t>(byte)];
      next = next == kNowhere ? target : kElsewhere;
    }
  }
  return table.get();
}

void Automaton::step_string(const Reading& from, const Grammar::Node& node, uint8_t byte, Readings& to) {
  if (from.character == CharState::kBetween) {
    if (byte == '"' && from.characters >= node.least) enter(node.target, from.stack, to);
    if (from.characters == node.most) return;
  }
  Reading next = from;
  next.character = next_char_state(from.character, byte);
  if (next.character == CharState::kDead) return;
  const int32_t counted = node.most < 0 ? node.least : node.most;
  if (next.character == CharState::kBetween && next.characters < counted) ++next.characters;
  to.items.push_back(next);
}

void Automaton::begin(Readings& to) {
  to.items.clear();
  to.complete = false;
  visited_.clear();
  if (++step_ == 0) {
    std::ranges::fill(visited_in_, 0);
    step_ = 1;
  }
}

void Automaton::end(Readings& to) {
  if (!calls_.empty()) run_calls(to);
  if (to.items.size() < 2) return;
  if (to.items.size() > kMaxReadings) {
    fail(Code::kUnsupported, "the schema's alternatives allow more than ", kMaxReadings, " readings of the same text");
  }
  std::sort(to.items.begin(), to.items.end());
  to.items.erase(std::unique(to.items.begin(), to.items.end()), to.items.end());
}

// All that a node stands for before the next byte.
void Automaton::enter(int32_t node, int32_t stack, Readings& to) {
  if (grammar_->node(node).reads_only()) {
    to.items.push_back({node, stack});
    return;
  }
  open_.push_back({node, stack});
  while (!open_.empty()) {
    const Frame at = open_.back();
    open_.pop_back();
    visit(at, to);
  }
}

void Automaton::visit(Frame at, Readings& to) {
  uint32_t& visited_in = visited_in_[static_cast<size_t>(at.node)];
  if (visited_in == step_ && std::ranges::find(visited_, at) != visited_.end()) return;
  visited_in = step_;
  visited_.push_back(at);
  const Grammar::Node& node = grammar_->node(at.node);
  if (node.kind == Grammar::Kind::kString || !node.edges.empty()) to.items.push_back({at.node, at.stack});
  if (node.kind == Grammar::Kind::kAccept) {
    if (at.stack == Stacks::kBottom) to.complete = true;
    for (const Frame& frame : stacks_.frames(at.stack)) open_.push_back(frame);
  }
  for (int32_t next : node.empty) open_.push_back({next, at.stack});
  for (const Grammar::Call& call : node.calls) calls_.push_back({call.rule, {call.target, at.stack}});
}

// In the order of the rules: a rule calls only later ones before its first byte, so all callers are known by then.
void Automaton::run_calls(Readings& to) {
  std::vector<Frame> callers;
  while (!calls_.empty()) {
    const int32_t rule = std::ranges::min_element(calls_, {}, &PendingCall::rule)->rule;
    callers.clear();
    std::erase_if(calls_, [&](const PendingCall& call) {
      if (call.rule == rule) callers.push_back(call.from);
      return call.rule == rule;
    });
    std::sort(callers.begin(), callers.end());
    callers.erase(std::unique(callers.begin(), callers.end()), callers.end());
    enter(grammar_->start_of(rule), stacks_.intern(callers), to);
  }
}

}  // namespace at_moe
