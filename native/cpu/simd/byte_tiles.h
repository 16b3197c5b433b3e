// Tiles of R rows of 8-bit activations by P panels of q8 (kernels.h). A block of 32 inputs is summed in integer registers and
// then added to the f32 accumulators, which lie in the first-level cache: 8 dot instructions and 3 to scale, for an output
// vector.
#pragma once

#include <hwy/cache_control.h>

#include "cpu/simd/dots.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

// What a tile reads again and again, apart from `Dots`, of which a store might be thought to change it.
struct TilePlaces {
  const char* w;
  int64_t w_panel;
  float* acc;
  int64_t acc_row;

  explicit TilePlaces(const Dots& d) : w(d.w), w_panel(d.w_panel), acc(d.acc), acc_row(d.acc_row) {}
};

// Adds the sums of the block that `input` begins.
template <int R, int V>
HWY_INLINE void add_sums(const Ints (&sum)[R][V], const RowBlock* rows, int64_t input, const TilePlaces& at) {
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const F32 f;
    const hn::Rebind<hwy::float16_t, F32> half;
    const char* scales = at.w + v / kVectors * at.w_panel + Q8Panel::scales(input);
    const Vec scale =
        hn::PromoteTo(f, hn::Load(half, reinterpret_cast<const hwy::float16_t*>(scales) + v % kVectors * kLanes));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* out = at.acc + r * at.acc_row + v * kLanes;
      const Vec scaled = hn::Mul(hn::ConvertTo(f, sum[r][v]), hn::Set(f, rows[r].scale));
      hn::StoreU(hn::MulAdd(scaled, scale, hn::LoadU(f, out)), f, out);
    }
  }
}

template <int R, int P>
void byte_tile(const Dots& d) {
  constexpr int V = P * kVectors;
  const TilePlaces at(d);
  const char* a = d.a;
  for (int64_t input = d.begin * kQ8Block; input < (d.begin + d.blocks) * kQ8Block; input += kQ8Block, a += d.a_block) {
    const auto* rows = reinterpret_cast<const RowBlock*>(a);
    const char* w = at.w + Q8Panel::line(input);
    Ints sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Ints start = hn::Set(I32(), rows[r].start);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = start;
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kQ8Block; i += 4, w += Q8Panel::kLine) {
      const auto load_line = [&](int v) {
        const char* from = w + v / kVectors * at.w_panel;
        // Of fewer rows a line's products are so short that it changes nothing.
        if (R >= 4 && v % kVectors == 0) hwy::Prefetch(from + kPrefetchBytes);
        return Dot::line(hn::Load(I32(), reinterpret_cast<const int32_t*>(from) + v % kVectors * kLanes));
      };
      if constexpr (R == 1) {  // which uses a line once
        const Dot::Inputs in = Dot::inputs(rows->values + i);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[0][v] = Dot::add(sum[0][v], load_line(v), in);
        continue;
      }
      Dot::Line line[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) line[v] = load_line(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Dot::Inputs in = Dot::inputs(rows[r].values + i);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[r][v] = Dot::add(sum[r][v], line[v], in);
      }
    }
    add_sums(sum, rows, input, at);
  }
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
