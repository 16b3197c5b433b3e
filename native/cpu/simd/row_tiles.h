// Converted rows by packed panels (kernels.h) in tiles of R rows by P panels that the registers hold. Up to a tile's
// rows the panels are read once from memory, P streams at a time; of more rows, all pass over some blocks of P
// panels. `Form` says what a tile is:
//   kRows, panels(rows)    the most rows of a tile, and the panels for a number of rows
//   kRowStep               rows that cost as much as one; kRows is a multiple of it
//   kPieceBlocks           blocks of P panels that stay in the first-level cache
//   tile<R, P>(dots)       the product of a tile
#pragma once

#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

template <typename Form>
class RowTiles {
 public:
  static void multiply(const Dots& all, int64_t row_bytes) {
    if (all.rows <= Form::kRows) stream_rows(all);
    else all_rows(all, row_bytes);
  }

 private:
  static constexpr int fewer(int panels) { return panels == 3 ? 2 : panels / 2; }

  // A tile's rows: all panels over all blocks, as they come from memory.
  template <int R, int P = Form::panels(R)>
  static void stream(Dots d) {
    for (; d.panels >= P; d.panels -= P, d.w += P * d.w_panel, d.acc += P * 16) Form::template tile<R, P>(d);
    if constexpr (P > 1) stream<R, fewer(P)>(d);
  }

  template <int R = Form::kRows>
  static void stream_rows(const Dots& d) {
    if (d.rows == R) return stream<R>(d);
    if constexpr (R > 1) stream_rows<R - 1>(d);
  }

  // More rows are spread evenly over tiles, none of which has less than half of the most rows; all but the last have
  // whole steps.
  template <int P, int R = Form::kRows>
  static void tile_rows(const Dots& d) {
    if (d.rows == R) return Form::template tile<R, P>(d);
    if constexpr (2 * R > Form::kRows) tile_rows<P, R - 1>(d);
  }

  template <int P = Form::panels(Form::kRows)>
  static void all_rows(Dots all, int64_t row_bytes) {
    const int64_t tiles = (all.rows + Form::kRows - 1) / Form::kRows;
    const int64_t steps = (all.rows + Form::kRowStep - 1) / Form::kRowStep;
    for (; all.panels >= P; all.panels -= P, all.w += P * all.w_panel, all.acc += P * 16) {
      for (int64_t block = 0; block < all.blocks; block += Form::kPieceBlocks) {
        Dots d = all;
        d.begin += block;
        d.blocks = all.blocks - block < Form::kPieceBlocks ? all.blocks - block : Form::kPieceBlocks;
        const char* a = all.a + block * all.a_block;
        for (int64_t t = 0, row = 0; t < tiles; ++t) {
          const int64_t whole = steps * (t + 1) / tiles * Form::kRowStep, end = whole < all.rows ? whole : all.rows;
          d.rows = end - row;
          d.a = a + row * row_bytes;
          d.acc = all.acc + row * all.acc_row;
          tile_rows<P>(d);
          row = end;
        }
      }
    }
    if constexpr (P > 1) all_rows<fewer(P)>(all, row_bytes);
  }
};

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
