// Rows of 8-bit activations by packed panels of q8 (kernels.h). A tile of R rows by P panels sums a block of 32 inputs in
// integer registers and then adds it to the f32 accumulators, which lie in the first-level cache: 8 dot instructions and 3
// to scale, for an output vector. 8 x 3 with AVX-512 (24 of 32 registers) and 6 x 1 with AVX2 (12 of 16) where one
// instruction is a dot; 8 x 2, 4 x 1 and, with SSE4, 2 x 1 where two pairs of them are; 6 x 1 with NEON. Up to a tile's
// rows the panels are read once from memory, P streams at a time; of more rows, all pass over some blocks of P panels.
#include "cpu/simd/dots.h"

#include <hwy/cache_control.h>

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t kPieceBlocks = 4;
constexpr int kRows = Dot::kRows;

template <int R, int P>
void tile(const Dots& d) {
  constexpr int V = P * kVectors;
  const int64_t w_panel = d.w_panel, acc_row = d.acc_row;  // not to be read again: no store can change them
  float* const acc = d.acc;
  const char* a = d.a;
  for (int64_t input = d.begin * kQ8Block; input < (d.begin + d.blocks) * kQ8Block; input += kQ8Block, a += d.a_block) {
    const auto* rows = reinterpret_cast<const RowBlock*>(a);
    const char* w = d.w + Q8Panel::line(input);
    Ints sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Ints start = hn::Set(I32(), rows[r].start);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = start;
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kQ8Block; i += 4, w += Q8Panel::kLine) {
      Dot::Line line[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const char* from = w + v / kVectors * w_panel;
        // Of fewer rows a line's products are so short that it changes nothing.
        if (R >= 4 && v % kVectors == 0) hwy::Prefetch(from + kPrefetchBytes);
        line[v] = Dot::line(hn::Load(I32(), reinterpret_cast<const int32_t*>(from) + v % kVectors * kLanes));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Dot::Inputs in = Dot::inputs(rows[r].values + i);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = Dot::add(sum[r][v], line[v], in);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const F32 f;
      const hn::Rebind<hwy::float16_t, F32> half;
      const char* scales = d.w + v / kVectors * w_panel + Q8Panel::scales(input);
      const Vec scale =
          hn::PromoteTo(f, hn::Load(half, reinterpret_cast<const hwy::float16_t*>(scales) + v % kVectors * kLanes));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float* out = acc + r * acc_row + v * kLanes;
        const Vec scaled = hn::Mul(hn::ConvertTo(f, sum[r][v]), hn::Set(f, rows[r].scale));
        hn::StoreU(hn::MulAdd(scaled, scale, hn::LoadU(f, out)), f, out);
      }
    }
  }
}

constexpr int fewer(int panels) { return panels == 3 ? 2 : panels / 2; }

// A tile's rows: all panels over all blocks, as they come from memory.
template <int R, int P = Dot::panels(R)>
void stream(Dots d) {
  for (; d.panels >= P; d.panels -= P, d.w += P * d.w_panel, d.acc += P * 16) tile<R, P>(d);
  if constexpr (P > 1) stream<R, fewer(P)>(d);
}

template <int R = kRows>
void stream_rows(const Dots& d) {
  if (d.rows == R) return stream<R>(d);
  if constexpr (R > 1) stream_rows<R - 1>(d);
}

// More rows are spread evenly over tiles, none of which has less than half of the most rows.
template <int P, int R = kRows>
void tile_rows(const Dots& d) {
  if (d.rows == R) return tile<R, P>(d);
  if constexpr (2 * R > kRows) tile_rows<P, R - 1>(d);
}

template <int P = Dot::panels(kRows)>
void all_rows(Dots all) {
  const int64_t tiles = (all.rows + kRows - 1) / kRows;
  for (; all.panels >= P; all.panels -= P, all.w += P * all.w_panel, all.acc += P * 16) {
    for (int64_t block = 0; block < all.blocks; block += kPieceBlocks) {
      Dots d = all;
      d.begin += block;
      d.blocks = all.blocks - block < kPieceBlocks ? all.blocks - block : kPieceBlocks;
      const char* a = all.a + block * all.a_block;
      for (int64_t t = 0, row = 0; t < tiles; ++t) {
        const int64_t end = all.rows * (t + 1) / tiles;
        d.rows = end - row;
        d.a = a + row * static_cast<int64_t>(sizeof(RowBlock));
        d.acc = all.acc + row * all.acc_row;
        tile_rows<P>(d);
        row = end;
      }
    }
  }
  if constexpr (P > 1) all_rows<fewer(P)>(all);
}

}  // namespace

void dots(const Dots& all) {
  if (all.rows <= kRows) stream_rows(all);
  else all_rows(all);
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
