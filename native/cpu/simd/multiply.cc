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

constexpr int64_t row_groups(int64_t rows, int64_t panels) { return (rows + rows_for(panels) - 1) / rows_for(panels); }

template <int R, int P>
HWY_INLINE void tile(const Tile& t) {
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

// Brings some more of what lies ahead each time, all of it in `steps` times.
class Prefetcher {
 public:
  Prefetcher(const Ahead& ahead, int64_t steps)
      : ahead_(ahead), share_((ahead.streams * lines() + steps - 1) / steps) {}

  void step() {
    for (int64_t left = share_; left > 0 && stream_ < ahead_.streams; --left) {
      __builtin_prefetch(ahead_.at + stream_ * ahead_.stride + line_ * 64, 0, 2);
      if (++line_ < lines()) continue;
      line_ = 0;
      ++stream_;
    }
  }

 private:
  int64_t lines() const { return ahead_.bytes / 64; }

  Ahead ahead_;
  int64_t share_, stream_ = 0, line_ = 0;
};

// `count` tiles of R rows each.
template <int R, int P>
void tiles(Tile& t, int64_t count, Prefetcher& prefetcher) {
  for (; count > 0; --count, t.a += R * t.a_row, t.acc += R * t.acc_row) {
    prefetcher.step();
    tile<R, P>(t);
  }
}

template <int P>
void any_rows(Tile& t, int64_t rows, int64_t count, Prefetcher& prefetcher) {
  switch (rows) {
    case 1: return tiles<1, P>(t, count, prefetcher);
    case 2: return tiles<2, P>(t, count, prefetcher);
#if HWY_ARCH_ARM_A64 || HWY_MAX_BYTES >= 32
    case 3: return tiles<3, P>(t, count, prefetcher);
    case 4: return tiles<4, P>(t, count, prefetcher);
    case 5: return tiles<5, P>(t, count, prefetcher);
    case 6: return tiles<6, P>(t, count, prefetcher);
#endif
  }
  if constexpr (kLanes == 16 && P < 4) {
    if (rows == 7) return tiles<7, P>(t, count, prefetcher);
    if (rows == 8) return tiles<8, P>(t, count, prefetcher);
  }
}

template <int P>
void all_rows(Tile t, Prefetcher& prefetcher) {
  const int64_t groups = row_groups(t.rows, P);
  const int64_t fewer = t.rows / groups, more = t.rows % groups;  // rows of a group; groups of one row more
  any_rows<P>(t, fewer + 1, more, prefetcher);
  any_rows<P>(t, fewer, groups - more, prefetcher);
}

}  // namespace

extern const double kMultiplyRate;
const double kMultiplyRate = kLanes * 3.5e9;  // a little over one vector a cycle of two
extern const int64_t kTilePanels;
const int64_t kTilePanels = kPanels;

void multiply(const Tile& all) {
  if (all.rows == 0) return;
  Prefetcher prefetcher(all.ahead, (all.panels + kPanels - 1) / kPanels * row_groups(all.rows, kPanels));
  Tile t = all;
  for (int64_t left = all.panels; left > 0;
       left -= kPanels, t.b += kPanels * t.b_panel, t.acc += kPanels * t.acc_panel) {
    switch (left < kPanels ? left : kPanels) {
      case 1: all_rows<1>(t, prefetcher); break;
#if HWY_MAX_BYTES >= 64
      case 2: all_rows<2>(t, prefetcher); break;
      case 3: all_rows<3>(t, prefetcher); break;
      case 4: all_rows<4>(t, prefetcher); break;
#endif
    }
  }
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
