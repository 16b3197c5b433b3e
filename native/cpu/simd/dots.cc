// Rows of 8-bit activations by packed panels of q8 (kernels.h). A tile of R rows by P panels sums a block of 32 inputs in
// integer registers and then adds it to the f32 accumulators, which lie in the first-level cache: 8 dot instructions and 3
// to scale, for an output vector. 8 x 3 with AVX-512 (24 of 32 registers) and 6 x 1 with AVX2 (12 of 16) where one
// instruction is a dot; 8 x 2, 4 x 1 and, with SSE4, 2 x 1 where two pairs of them are; 6 x 1 with NEON.
#include "cpu/simd/dots.h"

#include <hwy/cache_control.h>

#include "cpu/simd/row_tiles.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

template <int R, int P>
void byte_tile(const Dots& d) {
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

struct Bytes {
  static constexpr int kRows = Dot::kRows;
  static constexpr int64_t kPieceBlocks = 4;
  static constexpr int panels(int rows) { return Dot::panels(rows); }
  template <int R, int P>
  static constexpr auto tile = byte_tile<R, P>;
};

}  // namespace

void dots(const Dots& all) { RowTiles<Bytes>::multiply(all, sizeof(RowBlock)); }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
