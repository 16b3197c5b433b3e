// acc[r][16 p + c] += Σ_k a[r][k] w[p][k][c] straight from packed weights, which are read once, for 1 to 6 rows. P panels
// are P streams of memory and, times R rows, the independent chains that hide the latency of the multiply-add; more rows
// leave registers for fewer panels. From 4 rows on the loop body is long enough for software prefetch to pay.
#include <hwy/cache_control.h>

#include "cpu/simd/widen.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t kPrefetchBytes = 1024;

constexpr int panels_for(int rows) {
  if (kLanes == 16) return rows == 1 ? 8 : 4;
  if (kLanes == 4 && HWY_TARGET != HWY_NEON) return rows == 1 ? 2 : 1;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

template <DType T, int R, int P>
void block(const Lines& l) {
  using S = Step<T>;
  const F32 d;
  constexpr int I = S::kInputs;
  Vec acc[R][P * kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < P * kVectors; ++v) acc[r][v] = hn::LoadU(d, l.acc + r * l.acc_row + v * kLanes);
  }
  const char* w = l.w;
  const float* a = l.a;
  for (int64_t k = l.k / I; k > 0; --k, w += S::kBytes, a += I) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const char* line = w + p * l.w_panel;
      if constexpr (R >= 4) hwy::Prefetch(line + kPrefetchBytes);
      Vec inputs[kVectors][I];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) S::load(line, v, inputs[v]);
#pragma GCC unroll 2
      for (int i = 0; i < I; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec value = hn::Set(d, a[r * l.a_row + i]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            acc[r][p * kVectors + v] = hn::MulAdd(value, inputs[v][i], acc[r][p * kVectors + v]);
          }
        }
      }
    }
  }
  if (l.k % I != 0) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Vec inputs[I];
        S::load(w + p * l.w_panel, v, inputs);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r][p * kVectors + v] = hn::MulAdd(hn::Set(d, a[r * l.a_row]), inputs[0], acc[r][p * kVectors + v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < P * kVectors; ++v) hn::StoreU(acc[r][v], d, l.acc + r * l.acc_row + v * kLanes);
  }
}

template <DType T, int R>
void all_panels(const Lines& all) {
  constexpr int P = panels_for(R);
  Lines l = all;
  for (int64_t p = 0; p < all.panels;) {
    l.w = all.w + p * all.w_panel;
    l.acc = all.acc + p * 16;
    const bool whole = all.panels - p >= P;
    if (whole) block<T, R, P>(l);
    else block<T, R, 1>(l);
    p += whole ? P : 1;
  }
}

}  // namespace

extern const int64_t kLineRows;
const int64_t kLineRows = kLanes == 4 && HWY_TARGET != HWY_NEON ? 3 : 6;

template <DType T>
void lines(const Lines& l) {
  switch (l.rows) {
    case 1: return all_panels<T, 1>(l);
    case 2: return all_panels<T, 2>(l);
    case 3: return all_panels<T, 3>(l);
    case 4: return all_panels<T, 4>(l);
    case 5: return all_panels<T, 5>(l);
    case 6: return all_panels<T, 6>(l);
  }
}

template void lines<DType::f32>(const Lines&);
template void lines<DType::f16>(const Lines&);
template void lines<DType::bf16>(const Lines&);

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
