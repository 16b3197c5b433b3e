// The largest magnitude of stored values, by bits: magnitudes are ordered as their bits are, infinity and NaN at the end.
#pragma once

#include "cpu/simd/widen.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

// Bits are of an unsigned type, the sign first.
template <typename Bits>
class Magnitudes {
 public:
  using D = hn::Repartition<Bits, U32>;
  HWY_INLINE void add(const char* values) { add(hn::LoadU(D(), reinterpret_cast<const Bits*>(values))); }
  HWY_INLINE void add(hn::Vec<D> bits) {
    constexpr Bits kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
    largest_ = hn::Max(largest_, hn::And(bits, hn::Set(D(), kMagnitude)));
  }
  HWY_INLINE Bits largest() const { return hn::GetLane(hn::MaxOfLanes(D(), largest_)); }

 private:
  hn::Vec<D> largest_ = hn::Zero(D());
};

// kLanes stored values as bits of 32, those of 16 in the upper half: what load_as_float makes of infinity and NaN depends on
// the set.
HWY_INLINE hn::Vec<U32> load_bits(DType type, const char* source) {
  if (type == DType::f32) return hn::LoadU(U32(), reinterpret_cast<const uint32_t*>(source));
  return hn::ShiftLeft<16>(hn::PromoteTo(U32(), hn::LoadU(U16(), reinterpret_cast<const uint16_t*>(source))));
}

// Of such bits, those of infinity.
constexpr uint32_t infinity_bits(DType type) { return type == DType::f16 ? 0x7C000000 : 0x7F800000; }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
