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

template <int R, int P>
using Sums = Vec[R][P * kVectors];

// Adds the products of a line of each panel: all its inputs, or the first `count` at the end of a row.
template <Storage S, int R, int P, bool whole>
HWY_INLINE void add_line(Sums<R, P>& acc, const char* w, int64_t w_panel,
                         const typename Step<S>::Scale (&scales)[P][kVectors], const float* a, int64_t a_row,
                         int64_t count) {
  const F32 d;
  constexpr int I = Step<S>::kInputs;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const char* line = w + p * w_panel;
    if constexpr (R >= 4) hwy::Prefetch(line + kPrefetchBytes);
    Vec inputs[kVectors][I];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Step<S>::load(line, v, scales[p][v], inputs[v]);
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
      if (!whole && i == count) break;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec value = hn::Set(d, a[r * a_row + i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          acc[r][p * kVectors + v] = hn::MulAdd(value, inputs[v][i], acc[r][p * kVectors + v]);
        }
      }
    }
  }
}

template <Storage S, int R, int P>
void block(const Lines& l) {
  const F32 d;
  using Own = Step<S>;
  constexpr int I = Own::kInputs;
  Sums<R, P> acc;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < P * kVectors; ++v) acc[r][v] = hn::LoadU(d, l.acc + r * l.acc_row + v * kLanes);
  }
  const float* a = l.a;
  for (int64_t begin = l.begin, end = l.begin + l.k; begin < end;) {
    const int64_t inputs = is_blocks(S) && end - begin > kQ8Block ? kQ8Block : end - begin;
    typename Own::Scale scales[P][kVectors];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) scales[p][v] = Own::scale(l.w + p * l.w_panel, begin, v);
    }
    const char* w = l.w + Own::place(begin);
    for (int64_t line = inputs / I; line > 0; --line, w += Own::kBytes, a += I) {
      add_line<S, R, P, true>(acc, w, l.w_panel, scales, a, l.a_row, I);
    }
    if (inputs % I != 0) add_line<S, R, P, false>(acc, w, l.w_panel, scales, a, l.a_row, inputs % I);
    begin += inputs;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < P * kVectors; ++v) hn::StoreU(acc[r][v], d, l.acc + r * l.acc_row + v * kLanes);
  }
}

template <Storage S, int R>
void all_panels(const Lines& all) {
  constexpr int P = panels_for(R);
  Lines l = all;
  for (int64_t p = 0; p < all.panels;) {
    l.w = all.w + p * all.w_panel;
    l.acc = all.acc + p * 16;
    const bool whole = all.panels - p >= P;
    if (whole) block<S, R, P>(l);
    else block<S, R, 1>(l);
    p += whole ? P : 1;
  }
}

}  // namespace

extern const int64_t kLineRows;
const int64_t kLineRows = kLanes == 4 && HWY_TARGET != HWY_NEON ? 3 : 6;

template <Storage S>
void lines(const Lines& l) {
  switch (l.rows) {
    case 1: return all_panels<S, 1>(l);
    case 2: return all_panels<S, 2>(l);
    case 3: return all_panels<S, 3>(l);
    case 4: return all_panels<S, 4>(l);
    case 5: return all_panels<S, 5>(l);
    case 6: return all_panels<S, 6>(l);
  }
}

template void lines<Storage::f32>(const Lines&);
template void lines<Storage::f16>(const Lines&);
template void lines<Storage::bf16>(const Lines&);
template void lines<Storage::q8>(const Lines&);

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
