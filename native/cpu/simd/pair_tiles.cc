// Rows of bf16 pairs by packed panels of bf16 (kernels.h), by tiles of AMX. A block of 16 rows, their upper or lower
// parts, is tile 4 or 5; a block of a panel, which lies in memory as its 16 lines, is tile 6 or 7; tiles 0 to 3 are
// sums. Up to 16 rows read four panels from memory at once. More take 32 by two panels: eight products for six loads,
// and four between two that add to one tile, which hides their latency. Pieces of kBlockK inputs come first, since a
// piece of all rows stays in the second-level cache while the panels pass.
#include <cstring>

#include <hwy/cache_control.h>

#include "cpu/simd/pairs.h"
#include "cpu/simd/tiles.h"

namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t kTileRows = 16, kPieceBlocks = kBlockK / kDotBlock;
constexpr int64_t kTileBytes = kTileRows * kPairLine, kRowBytes = sizeof(PairBlock), kLow = sizeof(PairBlock::high);

// Sums and blocks of `first` rows, and of `second`; blocks of panels.
void configure(int64_t first, int64_t second) {
  TileShapes shapes;
  const int64_t rows[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
  for (int t = 0; t < 8; ++t) {
    shapes.rows[t] = static_cast<uint8_t>(rows[t]);
    shapes.row_bytes[t] = rows[t] > 0 ? kPairLine : 0;
  }
  Tiles::configure(shapes);
}

// A block of a panel; where the panel ends inside of it, zeros follow.
template <int tile>
HWY_INLINE void load_panel(const Dots& d, int64_t panel, int64_t block) {
  const char* from = d.w + panel * d.w_panel + block * kTileBytes;
  const int64_t inputs = d.inputs - block * kDotBlock;
  if (inputs >= kDotBlock) return Tiles::load<tile>(from, kPairLine);
  alignas(64) char lines[kTileBytes] = {};
  std::memcpy(lines, from, static_cast<size_t>((inputs + 1) / 2 * kPairLine));
  Tiles::load<tile>(lines, kPairLine);
}

HWY_INLINE void prefetch(const Dots& d, int64_t panel, int64_t block) {
  const char* next = d.w + panel * d.w_panel + (block + 1) * kTileBytes;
  for (int64_t line = 0; line < kTileBytes; line += kPairLine) hwy::Prefetch(next + line);
}

// Up to 16 rows by P panels.
template <int P>
void stream_tile(const Dots& d) {
  const int64_t stride = d.acc_row * static_cast<int64_t>(sizeof(float));
  Tiles::load<0>(d.acc, stride);
  if constexpr (P > 1) Tiles::load<1>(d.acc + 16, stride);
  if constexpr (P > 2) {
    Tiles::load<2>(d.acc + 32, stride);
    Tiles::load<3>(d.acc + 48, stride);
  }
  const char* a = d.a;
  for (int64_t block = d.begin; block < d.begin + d.blocks; ++block, a += d.a_block) {
    for (int64_t p = 0; p < P; ++p) prefetch(d, p, block);
    Tiles::load<4>(a, kRowBytes);
    Tiles::load<5>(a + kLow, kRowBytes);
    load_panel<6>(d, 0, block);
    if constexpr (P > 1) load_panel<7>(d, 1, block);
    Tiles::dot<0, 4, 6>();
    if constexpr (P > 1) Tiles::dot<1, 4, 7>();
    Tiles::dot<0, 5, 6>();
    if constexpr (P > 1) Tiles::dot<1, 5, 7>();
    if constexpr (P > 2) {
      load_panel<6>(d, 2, block);
      load_panel<7>(d, 3, block);
      Tiles::dot<2, 4, 6>();
      Tiles::dot<3, 4, 7>();
      Tiles::dot<2, 5, 6>();
      Tiles::dot<3, 5, 7>();
    }
  }
  Tiles::store<0>(d.acc, stride);
  if constexpr (P > 1) Tiles::store<1>(d.acc + 16, stride);
  if constexpr (P > 2) {
    Tiles::store<2>(d.acc + 32, stride);
    Tiles::store<3>(d.acc + 48, stride);
  }
}

template <int P = 4>
void stream(Dots d) {
  for (; d.panels >= P; d.panels -= P, d.w += P * d.w_panel, d.acc += P * 16) stream_tile<P>(d);
  if constexpr (P > 1) stream<P / 2>(d);
}

// `first` rows and the rest, at most 16 as well, by P panels.
template <int P>
void square_tile(const Dots& d, int64_t first) {
  const int64_t stride = d.acc_row * static_cast<int64_t>(sizeof(float));
  float* second_acc = d.acc + first * d.acc_row;
  Tiles::load<0>(d.acc, stride);
  Tiles::load<2>(second_acc, stride);
  if constexpr (P > 1) {
    Tiles::load<1>(d.acc + 16, stride);
    Tiles::load<3>(second_acc + 16, stride);
  }
  const char* a = d.a;
  for (int64_t block = d.begin; block < d.begin + d.blocks; ++block, a += d.a_block) {
    const char* second = a + first * kRowBytes;
    load_panel<6>(d, 0, block);
    if constexpr (P > 1) load_panel<7>(d, 1, block);
    for (const int64_t part : {int64_t{0}, kLow}) {
      Tiles::load<4>(a + part, kRowBytes);
      Tiles::load<5>(second + part, kRowBytes);
      Tiles::dot<0, 4, 6>();
      Tiles::dot<2, 5, 6>();
      if constexpr (P > 1) {
        Tiles::dot<1, 4, 7>();
        Tiles::dot<3, 5, 7>();
      }
    }
  }
  Tiles::store<0>(d.acc, stride);
  Tiles::store<2>(second_acc, stride);
  if constexpr (P > 1) {
    Tiles::store<1>(d.acc + 16, stride);
    Tiles::store<3>(second_acc + 16, stride);
  }
}

// All rows, `step` at a time, of which `first` are in the first tile.
void squares(const Dots& all, int64_t step, int64_t first) {
  configure(first, step - first);
  for (int64_t block = 0; block < all.blocks; block += kPieceBlocks) {
    Dots d = all;
    d.begin += block;
    d.blocks = all.blocks - block < kPieceBlocks ? all.blocks - block : kPieceBlocks;
    for (int64_t p = 0; p < all.panels; p += 2) {
      d.w = all.w + p * all.w_panel;
      for (int64_t row = 0; row < all.rows; row += step) {
        d.a = all.a + block * all.a_block + row * kRowBytes;
        d.acc = all.acc + row * all.acc_row + p * 16;
        if (all.panels - p > 1) square_tile<2>(d, first);
        else square_tile<1>(d, first);
      }
    }
  }
}

}  // namespace

void pair_dots(const Dots& all) {
  Dots d = all;
  d.rows = all.rows / (2 * kTileRows) * (2 * kTileRows);
  if (d.rows > 0) squares(d, 2 * kTileRows, kTileRows);
  d.a += d.rows * kRowBytes;
  d.acc += d.rows * d.acc_row;
  d.rows = all.rows - d.rows;
  if (d.rows > kTileRows) {
    squares(d, d.rows, (d.rows + 1) / 2);
  } else if (d.rows > 0) {
    configure(d.rows, d.rows);
    stream(d);
  }
  Tiles::release();
}

bool tiles_usable() { return Tiles::usable(); }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
