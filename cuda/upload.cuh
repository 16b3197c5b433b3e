// Small copies from the block of a step (cuda/commands.h) as a phase (cuda/phase.h). An item is kItemBytes of a copy.
#pragma once

#include <cstdint>

#include "cuda/phase.h"

namespace at_moe::cuda {

struct Upload {
  static constexpr int kMost = 8;
  static constexpr int64_t kItemBytes = 2048;
  struct Copy {
    const char* from;  // 16-byte aligned
    char* to;
    int64_t bytes;
    int64_t first;  // item
    int64_t items() const { return (bytes + kItemBytes - 1) / kItemBytes; }
  };
  Copy copies[kMost];
  int count = 0;

  int64_t items() const { return count == 0 ? 0 : copies[count - 1].first + copies[count - 1].items(); }
  void add(const char* from, char* to, int64_t bytes) {
    const int64_t first = items();
    copies[count++] = {from, to, bytes, first};
  }

  __device__ void run(int64_t item) const {
    int n = count - 1;
    while (copies[n].first > item) --n;
    const Copy& copy = copies[n];
    const int64_t begin = (item - copy.first) * kItemBytes, left = copy.bytes - begin;
    const int64_t bytes = left < kItemBytes ? left : kItemBytes;
    if ((reinterpret_cast<uintptr_t>(copy.to) | static_cast<uintptr_t>(bytes)) % sizeof(uint32_t) == 0) {
      move<uint32_t>(copy.from + begin, copy.to + begin, bytes);
    } else {
      move<char>(copy.from + begin, copy.to + begin, bytes);
    }
  }

 private:
  template <typename Unit>
  __device__ static void move(const char* from, char* to, int64_t bytes) {
    for (int64_t i = threadIdx.x; i < bytes / static_cast<int64_t>(sizeof(Unit)); i += kPhaseThreads) {
      reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
    }
  }
};

}  // namespace at_moe::cuda
