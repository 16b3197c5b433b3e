// The checks of the program that compares the kernels of one instruction set with plain loops. Each throws an Error, which
// says where, at the first value that differs.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "core/status.h"
#include "cpu/kernels.h"

namespace at_moe::cpu {

// Whether the set's multiply-adds are fused: all but those of SSE4.
bool fuses(const KernelSet& set);

void check_table(const KernelSet& set);
void check_multiply(const KernelSet& set);
void check_lines(const KernelSet& set);
void check_widen(const KernelSet& set);
void check_transpose(const KernelSet& set);
void check_pack(const KernelSet& set);
void check_pack_blocks(const KernelSet& set);
void check_softmax(const KernelSet& set);
void check_softmax_backward(const KernelSet& set);
void check_blend_and_dot(const KernelSet& set);
void check_swiglu(const KernelSet& set);
void check_exponentials(const KernelSet& set);
void check_probes(const KernelSet& set);
void check_integers(const KernelSet& set);
void check_pairs(const KernelSet& set);
void check_turn(const KernelSet& set);

template <typename T>
struct CacheLines {
  using value_type = T;
  CacheLines() = default;
  template <typename U>
  explicit CacheLines(const CacheLines<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const CacheLines&) const { return true; }
};
template <typename T>
using Array = std::vector<T, CacheLines<T>>;
using Floats = Array<float>;
using Bytes = Array<char>;

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(uint32_t seed) : bits_(seed) {}
  int64_t below(int64_t end) { return static_cast<int64_t>(bits_() % static_cast<uint64_t>(end)); }
  float uniform() { return static_cast<float>(bits_() >> 8) * 0x1p-23f - 1.0f; }  // of [-1, 1)
  Floats uniform(int64_t count) {
    Floats values(static_cast<size_t>(count));
    for (float& value : values) value = uniform();
    return values;
  }

 private:
  std::mt19937 bits_;
};

// Bit for bit; all NaNs are one.
inline bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}
inline bool same(char a, char b) { return a == b; }

template <typename T, typename... Where>
void expect_same(const Array<T>& actual, const Array<T>& expected, const Where&... where) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (same(actual[i], expected[i])) continue;
    fail(Code::kInternal, where..., ": [", i, "] is ", +actual[i], ", expected ", +expected[i]);
  }
}

template <typename... Where>
void expect_near(double actual, double expected, double bound, const Where&... where) {
  if (std::abs(actual - expected) <= bound) return;  // false for NaN
  fail(Code::kInternal, where..., " is ", actual, ", expected ", expected, " within ", bound);
}

template <typename... Where>
void expect(bool holds, const Where&... where) {
  if (!holds) fail(Code::kInternal, where...);
}

}  // namespace at_moe::cpu
