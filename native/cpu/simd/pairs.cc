// Rows split into pairs of bf16, panels turned for products with the transposed weight, and the table of the products
// of pairs (kernels.h).
#include "cpu/simd/pairs.h"

#include <hwy/cache_control.h>

#include <cstring>
#include <limits>

#include "cpu/simd/convert_row.h"
#include "cpu/simd/widen.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

void pair_dots(const Dots& all);

namespace {

// Stores values rounded to bf16 and returns what they are then.
HWY_INLINE Vec store_rounded(Vec value, uint16_t* out) {
#if defined(__AVX512BF16__)
  const auto halves = (__m256i)_mm512_cvtneps_pbh(value.raw);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), halves);
  return Vec{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
#else
  const auto bits = round_to_bf16(value);
  hn::StoreU(hn::DemoteTo(U16(), hn::BitCast(I32(), hn::ShiftRight<16>(bits))), U16(), out);
  return hn::BitCast(F32(), bits);
#endif
}

void split_block(const float* x, PairBlock* out) {
  const F32 d;
  const Vec infinity = hn::Set(d, std::numeric_limits<float>::infinity());
#pragma GCC unroll 8
  for (int i = 0; i < kDotBlock; i += kLanes) {
    const Vec value = hn::LoadU(d, x + i);
    const Vec high = store_rounded(value, out->high + i);
    const auto finite = hn::Lt(hn::Abs(high), infinity);
    store_rounded(hn::IfThenElseZero(finite, hn::Sub(value, high)), out->low + i);
  }
}

// Two inputs of two outputs are neighbours in a line: after their middle values changed places, they are two outputs
// of two inputs, and blocks of 64 bits are transposed.
void turn(const char* panel, int64_t begin, int64_t count, char* out) {
  constexpr int64_t kLines = 8;
  const char* lines = panel + begin / 2 * kPairLine;
  for (int64_t line = kLines; line < 2 * kLines; ++line) hwy::Prefetch(lines + line * kPairLine);
  alignas(64) char tail[kLines * kPairLine];
  if (count < 16) {
    const int64_t bytes = (count + 1) / 2 * kPairLine;
    std::memset(tail, 0, sizeof(tail));
    std::memcpy(tail, lines, static_cast<size_t>(bytes));
    lines = tail;
  }
  alignas(16) static constexpr uint8_t kOrder[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  const hn::FixedTag<uint8_t, 16> bytes;
  const hn::FixedTag<uint64_t, 2> d;
  const auto order = hn::Load(bytes, kOrder);
  const auto load = [&](int64_t line, int64_t block) {
    const auto* from = reinterpret_cast<const uint8_t*>(lines + line * kPairLine + block * 8);
    return hn::BitCast(d, hn::TableLookupBytes(hn::LoadU(bytes, from), order));
  };
  const auto store = [&](hn::Vec<decltype(d)> blocks, int64_t line, int64_t block) {
    hn::StoreU(hn::BitCast(bytes, blocks), bytes, reinterpret_cast<uint8_t*>(out + line * kPairLine + block * 8));
  };
  for (int64_t i = 0; i < kLines; i += 2) {
    for (int64_t o = 0; o < kLines; o += 2) {
      const auto even = load(i, o), odd = load(i + 1, o);
      store(hn::InterleaveLower(d, even, odd), o, i);
      store(hn::InterleaveUpper(d, even, odd), o + 1, i);
    }
  }
}

}  // namespace

const PairKernels& pair_kernels() {
  static const PairKernels table = {{sizeof(PairBlock), convert_row<PairBlock, split_block>, pair_dots}, turn};
  return table;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
