// Rows of 8-bit activations by packed panels of q8 (kernels.h), where an instruction multiplies matrices of bytes: it adds
// to 2 rows x 2 outputs the products of 8 inputs, twice the work of a dot. Two lines of a panel interleaved are pairs of
// outputs of 8 inputs; a pair of rows is loaded as one vector. Tiles of 6 x 1 (24 of 32 registers), 4 x 1 and 2 x 2; an odd
// last row counts as two, and a row alone takes dots, which need no interleaving.
#include "cpu/simd/byte_tiles.h"
#include "cpu/simd/row_tiles.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

static_assert(Q8Panel::kFlip == 0, "sums start at zero");

HWY_INLINE int8x16_t pair_of_rows(const int8_t* first, const int8_t* second) {
  return vcombine_s8(vld1_s8(first), vld1_s8(second));
}

// A block's sums of a pair of rows by four outputs: of outputs 0 and 1, then of 2 and 3, a row in each half.
struct Square {
  int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);

  HWY_INLINE void add(int8x16_t rows, int32x4_t line, int32x4_t next) {
    low = vmmlaq_s32(low, rows, vreinterpretq_s8_s32(vzip1q_s32(line, next)));
    high = vmmlaq_s32(high, rows, vreinterpretq_s8_s32(vzip2q_s32(line, next)));
  }
  HWY_INLINE Ints row(int r) const {
    const int64x2_t a = vreinterpretq_s64_s32(low), b = vreinterpretq_s64_s32(high);
    return Ints(vreinterpretq_s32_s64(r == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b)));
  }
};

template <int R, int P>
void matrix_tile(const Dots& d) {
  constexpr int V = P * kVectors, kPairs = (R + 1) / 2;
  const TilePlaces at(d);
  const char* a = d.a;
  for (int64_t input = d.begin * kQ8Block; input < (d.begin + d.blocks) * kQ8Block; input += kQ8Block, a += d.a_block) {
    const auto* rows = reinterpret_cast<const RowBlock*>(a);
    const char* w = at.w + Q8Panel::line(input);
    Square square[kPairs][V];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kQ8Block; i += 8, w += 2 * Q8Panel::kLine) {
      int8x16_t in[kPairs];
#pragma GCC unroll 3
      for (int pair = 0; pair < kPairs; ++pair) {
        const int first = 2 * pair, second = first + 1 < R ? first + 1 : first;
        in[pair] = pair_of_rows(rows[first].values + i, rows[second].values + i);
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const char* from = w + v / kVectors * at.w_panel;
        if (v % kVectors == 0) {
          hwy::Prefetch(from + kPrefetchBytes);
          hwy::Prefetch(from + kPrefetchBytes + Q8Panel::kLine);
        }
        const int32_t* line = reinterpret_cast<const int32_t*>(from) + v % kVectors * kLanes;
        const int32x4_t first = vld1q_s32(line), next = vld1q_s32(line + Q8Panel::kLine / 4);
#pragma GCC unroll 3
        for (int pair = 0; pair < kPairs; ++pair) square[pair][v].add(in[pair], first, next);
      }
    }
    Ints sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = square[r / 2][v].row(r % 2);
    }
    add_sums(sum, rows, input, at);
  }
}

struct Matrices {
  static constexpr int kRows = 6, kRowStep = 2;
  static constexpr int64_t kPieceBlocks = 4;
  static constexpr int panels(int rows) { return Dot::panels(rows); }
  template <int R, int P>
  static constexpr auto tile = R == 1 ? byte_tile<R, P> : matrix_tile<R, P>;
};

}  // namespace

void dots(const Dots& all) { RowTiles<Matrices>::multiply(all, sizeof(RowBlock)); }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
