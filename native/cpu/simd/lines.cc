// acc[r][16 p + c] += Σ_k a[r][k] w[p][k][c] straight from packed weights, which are read once, for 1 to 8 rows. P panels
// are P streams of memory and, times R rows, the independent chains that hide the latency of the multiply-add; more rows
// leave registers for fewer panels. Prefetch bridges the pages that the processor's own does not cross.
#include <hwy/cache_control.h>

#include "cpu/simd/widen.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t panels_for(int64_t rows) {
  if (kLanes == 16) return rows == 1 ? 8 : rows <= 6 ? 4 : 3;
  if (kLanes == 4 && !HWY_ARCH_ARM_A64) return rows == 1 ? 2 : 1;
  return rows == 1 ? 4 : rows <= (HWY_ARCH_ARM_A64 ? 2 : 3) ? 2 : 1;
}

template <int R, int P>
using Sums = Vec[R][P * kVectors];

template <Storage S>
using LineOf = typename Step<S>::Line[kVectors];
template <Storage S>
using ScaleOf = typename Step<S>::Scale[kVectors];

template <Storage S>
HWY_INLINE void load_line(LineOf<S>& line, const char* w) {
  hwy::Prefetch(w + kPrefetchBytes);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) line[v] = Step<S>::load(w, v);
}

// Adds the products of input i of a line of panel p.
template <Storage S, int R, int P>
HWY_INLINE void add_input(Sums<R, P>& acc, int p, int i, const LineOf<S>& line, const ScaleOf<S>& scale, const float* a,
                          int64_t a_row) {
  const F32 d;
  Vec inputs[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) inputs[v] = Step<S>::input(line[v], i, scale[v]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec value = hn::Set(d, a[r * a_row + i]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      acc[r][p * kVectors + v] = hn::MulAdd(value, inputs[v], acc[r][p * kVectors + v]);
    }
  }
}

// Adds the products of a line of each panel: all its inputs, or the first `count` at the end of a row.
template <Storage S, int R, int P, bool whole>
HWY_INLINE void add_line(Sums<R, P>& acc, const char* w, int64_t w_panel, const ScaleOf<S> (&scales)[P], const float* a,
                         int64_t a_row, int64_t count) {
  constexpr int I = Step<S>::kInputs;
  if constexpr (is_blocks(S)) {
    // By inputs: four inputs' activations of many rows would not fit the registers, which panel by panel shares.
    LineOf<S> lines[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) load_line<S>(lines[p], w + p * w_panel);
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
      if (!whole && i == count) break;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) add_input<S, R, P>(acc, p, i, lines[p], scales[p], a, a_row);
    }
  } else {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      LineOf<S> line;
      load_line<S>(line, w + p * w_panel);
#pragma GCC unroll 2
      for (int i = 0; i < I; ++i) {
        if (!whole && i == count) break;
        add_input<S, R, P>(acc, p, i, line, scales[p], a, a_row);
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
    ScaleOf<S> scales[P];
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
  // The scales of q8 take two vectors for each of a line: registers of four lanes hold those of one panel.
  constexpr int P = is_blocks(S) && kLanes == 4 ? 1 : panels_for(R), kHalf = (P + 1) / 2;
  Lines l = all;
  for (int64_t p = 0; p < all.panels;) {
    l.w = all.w + p * all.w_panel;
    l.acc = all.acc + p * 16;
    const int64_t left = all.panels - p;
    if (left >= P) {
      block<S, R, P>(l);
      p += P;
    } else if (left >= kHalf) {
      block<S, R, kHalf>(l);
      p += kHalf;
    } else {
      block<S, R, 1>(l);
      ++p;
    }
  }
}

}  // namespace

extern const int64_t kLineRows;
const int64_t kLineRows = kLanes == 4 && !HWY_ARCH_ARM_A64 ? 3 : kLanes == 16 ? 8 : 6;

int64_t line_panels(int64_t rows) { return panels_for(rows); }

template <Storage S>
void lines(const Lines& l) {
  switch (l.rows) {
    case 1: return all_panels<S, 1>(l);
    case 2: return all_panels<S, 2>(l);
    case 3: return all_panels<S, 3>(l);
    case 4: return all_panels<S, 4>(l);
    case 5: return all_panels<S, 5>(l);
    case 6: return all_panels<S, 6>(l);
#if HWY_MAX_BYTES >= 64
    case 7: return all_panels<S, 7>(l);
    case 8: return all_panels<S, 8>(l);
#endif
  }
}

template void lines<Storage::f32>(const Lines&);
template void lines<Storage::f16>(const Lines&);
template void lines<Storage::bf16>(const Lines&);
template void lines<Storage::q8>(const Lines&);

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
