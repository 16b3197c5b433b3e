// Rows of bf16 pairs and lines of their panels (kernels.h), and the vector instructions that add their products, by what
// the compiler may use: one `add` gives each lane, an output, the products of two inputs.
#pragma once

#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

inline constexpr int64_t kPairLine = 64;  // bytes: two inputs of 16 outputs
inline constexpr int kBlockLines = kDotBlock / 2;

// A block of a row.
struct PairBlock {
  uint16_t high[kDotBlock], low[kDotBlock];
};

#if defined(__AVX512BF16__)
struct PairDot {
  static constexpr int kRows = 6;
  static constexpr int panels(int rows) { return rows <= 2 ? 8 : 4; }
  using Line = __m512bh;
  static HWY_INLINE Line line(const char* from, int) { return (__m512bh)_mm512_load_si512(from); }
  static HWY_INLINE Line pair(const uint16_t* two) {
    int32_t bits;
    hwy::CopyBytes<4>(two, &bits);
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  static HWY_INLINE Vec add(Vec sum, Line line, Line pair) { return Vec{_mm512_dpbf16_ps(sum.raw, line, pair)}; }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
struct PairDot {
  static constexpr int kRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  using Line = bfloat16x8_t;
  static HWY_INLINE Line line(const char* from, int v) {
    return vld1q_bf16(reinterpret_cast<const bfloat16_t*>(from) + v * 2 * kLanes);
  }
  static HWY_INLINE Line pair(const uint16_t* two) {
    int32_t bits;
    hwy::CopyBytes<4>(two, &bits);
    return vreinterpretq_bf16_s32(vdupq_n_s32(bits));
  }
  static HWY_INLINE Vec add(Vec sum, Line line, Line pair) { return Vec(vbfdotq_f32(sum.raw, line, pair)); }
};
#endif

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
