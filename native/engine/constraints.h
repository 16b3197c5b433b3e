// The grammars that sequences may be held to, and the vocabulary they are spelled in.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "grammar/matcher.h"

namespace at_moe {

class Constraints {
 public:
  bool has_vocabulary() const { return tokens_ != nullptr; }
  // Prepared.
  void set_vocabulary(std::shared_ptr<const Vocabulary> vocabulary) {
    tokens_ = std::make_shared<SetTokensCache>(std::move(vocabulary));
  }
  void add(int64_t number, std::shared_ptr<const Grammar> grammar) { entries_[number] = {std::move(grammar), nullptr}; }
  // Sequences that follow it keep it.
  void release(int64_t number) { entries_.erase(number); }
  // Fails with kInternal for an unknown number, and without a vocabulary.
  std::shared_ptr<Constraint> at(int64_t number);

 private:
  struct Entry {
    std::shared_ptr<const Grammar> grammar;
    std::shared_ptr<Constraint> constraint;  // made at the first use
  };
  std::shared_ptr<SetTokensCache> tokens_;
  std::map<int64_t, Entry> entries_;
};

}  // namespace at_moe
