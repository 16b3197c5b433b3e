// acc[r][16 p + c] += Σ_k a[r][k] b[p][k][c]. A tile of R rows by P panels lives in registers while k runs: 6 x 1 with
// AVX2 (12 of 16 registers), 6 x 4 with AVX-512 and 6 x 1 with NEON (24 of 32), 2 x 1 with SSE4; up to 8 x 3 with AVX-512
// where fewer panels are left. Rows are spread evenly over the tiles, since a tile of one or two rows waits for the latency
// of its few chains.
#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int kPanels = kLanes == 16 ? 4 : 1;

constexpr int64_t rows_for(int64_t panels) {
  if (kLanes == 16) return panels == 4 ? 6 : 8;
  return kLanes == 8 || HWY_ARCH_ARM_A64 ? 6 : 2;
}

template <int R, int P>
void tile(const Tile& t) {
  const F32 d;
  constexpr int V = P * kVectors;
  const float* a[R];
  Vec acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = t.a + r * t.a_row;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[r][v] = hn::LoadU(d, t.acc + r * t.acc_row + v / kVectors * t.acc_panel + v % kVectors * kLanes);
    }
  }
  const float* b = t.b;
  int64_t at = 0;
  for (int64_t k = 0; k < t.k; ++k, b += t.b_k, at += t.a_k) {
    Vec line[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) line[v] = hn::LoadU(d, b + v / kVectors * t.b_panel + v % kVectors * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec value = hn::Set(d, a[r][at]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = hn::MulAdd(value, line[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      hn::StoreU(acc[r][v], d, t.acc + r * t.acc_row + v / kVectors * t.acc_panel + v % kVectors * kLanes);
    }
  }
}

template <int P>
void any_rows(const Tile& t) {
  switch (t.rows) {
    case 1: return tile<1, P>(t);
    case 2: return tile<2, P>(t);
#if HWY_ARCH_ARM_A64 || HWY_MAX_BYTES >= 32
    case 3: return tile<3, P>(t);
    case 4: return tile<4, P>(t);
    case 5: return tile<5, P>(t);
    case 6: return tile<6, P>(t);
#endif
  }
  if constexpr (kLanes == 16 && P < 4) {
    if (t.rows == 7) return tile<7, P>(t);
    if (t.rows == 8) return tile<8, P>(t);
  }
}

}  // namespace

extern const double kMultiplyRate;
const double kMultiplyRate = kLanes * 3.5e9;  // a little over one vector a cycle of two
extern const int64_t kTilePanels;
const int64_t kTilePanels = kPanels;

void multiply(const Tile& all) {
  if (all.rows == 0) return;
  for (int64_t p = 0; p < all.panels; p += kPanels) {
    const int64_t panels = all.panels - p < kPanels ? all.panels - p : kPanels;
    const int64_t groups = (all.rows + rows_for(panels) - 1) / rows_for(panels);
    const int64_t fewer = all.rows / groups, more = all.rows % groups;  // rows of a group; groups of one row more
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      Tile t = all;
      t.rows = fewer + (g < more);
      t.a += row * t.a_row;
      t.b += p * t.b_panel;
      t.acc += row * t.acc_row + p * t.acc_panel;
      switch (panels) {
        case 1: any_rows<1>(t); break;
#if HWY_MAX_BYTES >= 64
        case 2: any_rows<2>(t); break;
        case 3: any_rows<3>(t); break;
        case 4: any_rows<4>(t); break;
#endif
      }
      row += t.rows;
    }
  }
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
