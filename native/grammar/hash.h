// Hashes of short lists of numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace at_moe {

class Hasher {
 public:
  void add(int32_t a, int32_t b) {
    const uint64_t both = static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
    state_ = (state_ ^ both) * 0x9E3779B97F4A7C15u;
    state_ ^= state_ >> 29;
  }
  size_t value() const { return static_cast<size_t>(state_); }

 private:
  uint64_t state_ = 0x51ED270B;
};

}  // namespace at_moe
