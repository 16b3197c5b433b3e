#include "grammar/matcher.h"

#include <algorithm>

#include "core/status.h"

namespace at_moe {

namespace {

// Stacks that are kept before all are forgotten and those of the living sequences are made again.
constexpr size_t kMostStacks = size_t{1} << 16;

}  // namespace

Matcher::Matcher(std::shared_ptr<Constraint> constraint)
    : constraint_(std::move(constraint)), era_(constraint_->era), most_stacks_(kMostStacks) {
  constraint_->automaton.start(readings_);
}

const uint32_t* Matcher::allowed(const std::vector<int32_t>& stop_tokens) {
  if (constraint_->automaton.stacks() > most_stacks_) {
    constraint_->automaton.forget_stacks();
    constraint_->masks.clear();
    ++constraint_->era;
  }
  if (era_ != constraint_->era) renew();
  mask_ = constraint_->masks.of(readings_);
  if (readings_.complete && !stop_tokens.empty()) {
    auto with_stops = std::make_shared<TokenSet>(*mask_);
    const auto size = static_cast<int32_t>(constraint_->masks.vocabulary().size());
    for (int32_t token : stop_tokens) {
      if (token >= 0 && token < size) with_stops->add(token);
    }
    mask_ = std::move(with_stops);
  }
  if (mask_->empty()) fail(Code::kUnsupported, "no token of the vocabulary continues the text as its schema asks");
  return mask_->words();
}

void Matcher::accept(int32_t token) {
  if (era_ != constraint_->era) renew();
  read(token);
  tokens_.push_back(token);
}

void Matcher::read(int32_t token) {
  const auto bytes = constraint_->masks.vocabulary().bytes_of(token);
  require(!bytes.empty(), "token ", token, " is no part of a constrained text");
  for (uint8_t byte : bytes) {
    require(constraint_->automaton.step(readings_, byte, next_), "token ", token, " does not continue the text");
    std::swap(readings_, next_);
  }
}

void Matcher::renew() {
  era_ = constraint_->era;
  constraint_->automaton.start(readings_);
  for (int32_t token : tokens_) read(token);
  // A text that needs more by itself must not be read again at every token.
  most_stacks_ = std::max(kMostStacks, 2 * constraint_->automaton.stacks());
}

}  // namespace at_moe
