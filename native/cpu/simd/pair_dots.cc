// Rows of bf16 pairs by packed panels of bf16 (kernels.h), by instructions on vectors. The sums of a tile of R rows
// by P panels stay in registers: 6 x 4 with AVX-512, 6 x 1 with NEON (24 of 32). For each line of a panel, two inputs, they take the
// product with the row's upper parts, then that with its lower ones.
#include <hwy/cache_control.h>

#include "cpu/simd/pairs.h"
#include "cpu/simd/row_tiles.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

template <int R, int P>
using Sums = Vec[R][P * kVectors];

template <int R, int P>
HWY_INLINE void add_line(Sums<R, P>& sum, const char* w, int64_t w_panel, const PairBlock* rows, int64_t input) {
  constexpr int V = P * kVectors;
  PairDot::Line line[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const char* from = w + v / kVectors * w_panel;
    if (v % kVectors == 0) hwy::Prefetch(from + kPrefetchBytes);
    line[v] = PairDot::line(from, v % kVectors);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const PairDot::Line high = PairDot::pair(rows[r].high + input), low = PairDot::pair(rows[r].low + input);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = PairDot::add(sum[r][v], line[v], high);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = PairDot::add(sum[r][v], line[v], low);
  }
}

template <int R, int P>
void pair_tile(const Dots& d) {
  constexpr int V = P * kVectors;
  const F32 f;
  Sums<R, P> sum;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = hn::LoadU(f, d.acc + r * d.acc_row + v * kLanes);
  }
  const char* a = d.a;
  const char* w = d.w + d.begin * kBlockLines * kPairLine;
  for (int64_t block = d.begin; block < d.begin + d.blocks; ++block, a += d.a_block) {
    const auto* rows = reinterpret_cast<const PairBlock*>(a);
    const int64_t left = d.inputs - block * kDotBlock, inputs = left < kDotBlock ? left : kDotBlock;
    for (int64_t i = 0; i < inputs; i += 2, w += kPairLine) add_line<R, P>(sum, w, d.w_panel, rows, i);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) hn::StoreU(sum[r][v], f, d.acc + r * d.acc_row + v * kLanes);
  }
}

struct Pairs {
  static constexpr int kRows = PairDot::kRows, kRowStep = 1;
  static constexpr int64_t kPieceBlocks = kBlockK / kDotBlock;
  static constexpr int panels(int rows) { return PairDot::panels(rows); }
  template <int R, int P>
  static constexpr auto tile = pair_tile<R, P>;
};

}  // namespace

void pair_dots(const Dots& all) { RowTiles<Pairs>::multiply(all, sizeof(PairBlock)); }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
