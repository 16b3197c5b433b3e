// The instructions that multiply bytes, by what the compiler may use. One `dot` adds to each lane of a vector, an output,
// the products of four inputs; all sums are exact, so all forms give the same integers. Beside it stands what the registers
// hold: the most rows of a tile, and the panels for a number of rows.
#pragma once

#include "cpu/q8_panel.h"
#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

using Ints = hn::Vec<I32>;

HWY_INLINE Ints broadcast(const void* four_bytes) {
  int32_t bits;
  hwy::CopyBytes<4>(four_bytes, &bits);
  return hn::Set(I32(), bits);
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct Dot {
  static constexpr int kRows = kLanes == 16 ? 8 : 6;
  static constexpr int panels(int rows) {
    if (kLanes == 16) return rows <= 2 ? 8 : rows <= 4 ? 4 : 3;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  }
  using Input = int8_t;
  using Inputs = Ints;
  using Line = Ints;
  static HWY_INLINE Line line(Ints bytes) { return bytes; }
  static HWY_INLINE Inputs inputs(const Input* four) { return broadcast(four); }
  static HWY_INLINE Ints add(Ints sum, Line line, Inputs in) {
#if defined(__AVX512VNNI__)
    return Ints{_mm512_dpbusd_epi32(sum.raw, line.raw, in.raw)};
#else
    return Ints{_mm256_dpbusd_avx_epi32(sum.raw, line.raw, in.raw)};
#endif
  }
};
#elif HWY_ARCH_X86
// Bytes 0 and 2 of a lane, then 1 and 3, as pairs of 16 bits.
struct Dot {
  static constexpr int kRows = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;
  static constexpr int panels(int rows) {
    if (kLanes == 16) return rows <= 2 ? 8 : rows <= 4 ? 4 : 2;
    return rows == 1 ? kLanes / 2 : rows == 2 ? kLanes / 4 : 1;
  }
  using Input = int16_t;  // of four neighbours: 0, 2, 1, 3
  struct Inputs {
    Ints even, odd;
  };
  using Line = Inputs;
  static HWY_INLINE Line line(Ints bytes) {
    const hn::Repartition<uint16_t, I32> d;
    const auto pairs = hn::BitCast(d, bytes);
    return {hn::BitCast(I32(), hn::And(pairs, hn::Set(d, 0xFF))), hn::BitCast(I32(), hn::ShiftRight<8>(pairs))};
  }
  static HWY_INLINE Inputs inputs(const Input* four) { return {broadcast(four), broadcast(four + 2)}; }
  static HWY_INLINE Ints add(Ints sum, const Line& line, const Inputs& in) {
    return add_pairs(add_pairs(sum, line.even, in.even), line.odd, in.odd);
  }

 private:
  static HWY_INLINE Ints add_pairs(Ints sum, Ints a, Ints b) {
    const hn::Repartition<int16_t, I32> d;
    Ints none = hn::Zero(I32());
    sum = hn::ReorderWidenMulAccumulate(I32(), hn::BitCast(d, a), hn::BitCast(d, b), sum, none);
    // Keeps gcc from adding products up before the sum, which takes more registers than there are.
    asm("" : "+v"(sum.raw));
    return sum;
  }
};
#elif HWY_ARCH_ARM_A64 && !defined(__ARM_FEATURE_SVE)
struct Dot {
  static constexpr int kRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  using Input = int8_t;
  using Inputs = int8x16_t;
  using Line = int8x16_t;
  static HWY_INLINE Line line(Ints bytes) { return vreinterpretq_s8_s32(bytes.raw); }
  static HWY_INLINE Inputs inputs(const Input* four) { return vreinterpretq_s8_s32(broadcast(four).raw); }
  static HWY_INLINE Ints add(Ints sum, Line line, Inputs in) {
#if defined(__ARM_FEATURE_DOTPROD)
    return Ints(vdotq_s32(sum.raw, line, in));
#else
    // Two products of at most 127² fit 16 bits.
    const int16x8_t low = vmull_s8(vget_low_s8(line), vget_low_s8(in)), high = vmull_high_s8(line, in);
    return Ints(vpadalq_s16(sum.raw, vpaddq_s16(low, high)));
#endif
  }
};
#else
struct Dot {
  static constexpr int kRows = 2;
  static constexpr int panels(int rows) { return 3 - rows; }
  using Input = int8_t;
  using Inputs = const Input*;
  using Line = Ints;
  static HWY_INLINE Line line(Ints bytes) { return bytes; }
  static HWY_INLINE Inputs inputs(const Input* four) { return four; }
  static HWY_INLINE Ints add(Ints sum, Line line, Inputs in) {
    sum = add_byte<0>(sum, line, in);
    sum = add_byte<1>(sum, line, in);
    sum = add_byte<2>(sum, line, in);
    return add_byte<3>(sum, line, in);
  }

 private:
  template <int i>
  static HWY_INLINE Ints add_byte(Ints sum, Line line, Inputs in) {
    const Ints value = hn::ShiftRight<24>(hn::ShiftLeft<24 - 8 * i>(line));
    return hn::Add(sum, hn::Mul(value, hn::Set(I32(), in[i])));
  }
};
#endif

// A block of a quantised row. The sums start at `start`, which makes up for what the panels' bytes are more than q.
struct RowBlock {
  Dot::Input values[kQ8Block];
  float scale;
  int32_t start;
};

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
