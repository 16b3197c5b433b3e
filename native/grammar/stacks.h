// Where rules return to. A stack is a set of frames, each a node to go on at and the stack that is left then: calls of one
// rule at one place share a stack, so that ambiguity costs no more than the number of callers. Equal sets have one number.
#pragma once

#include <cstdint>
#include <span>
#include <tuple>
#include <unordered_set>
#include <vector>

namespace at_moe {

struct Frame {
  int32_t node = 0, stack = 0;
  bool operator==(const Frame&) const = default;
  bool operator<(const Frame& other) const { return std::tie(node, stack) < std::tie(other.node, other.stack); }
};

class Stacks {
 public:
  static constexpr int32_t kBottom = 0;  // of the root: no frames

  Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // `frames` in ascending order.
  int32_t intern(std::span<const Frame> frames);
  std::span<const Frame> frames(int32_t stack) const {
    const size_t begin = starts_[static_cast<size_t>(stack)], end = starts_[static_cast<size_t>(stack) + 1];
    return std::span(frames_).subspan(begin, end - begin);
  }
  size_t size() const { return starts_.size() - 1; }
  void clear();

 private:
  struct Hash {
    const Stacks* stacks;
    size_t operator()(int32_t stack) const;
  };
  struct Same {
    const Stacks* stacks;
    bool operator()(int32_t a, int32_t b) const;
  };

  std::vector<Frame> frames_;
  std::vector<size_t> starts_{0};
  std::unordered_set<int32_t, Hash, Same> known_;
};

}  // namespace at_moe
