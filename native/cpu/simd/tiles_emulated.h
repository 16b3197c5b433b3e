// The tile registers of tiles.h as plain loops, for processors without them: the addon with the emulated device has
// them in their place. What the instructions would fault on fails. Denormals are flushed as in every task
// (cpu/pool.h).
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "core/status.h"

namespace at_moe::cpu::AT_MOE_SIMD_NS {

struct TileShapes {
  uint8_t palette = 1;
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

class Tiles {
 public:
  static bool usable() { return true; }

  static void configure(const TileShapes& shapes) {
    for (int t = 0; t < 16; ++t) {
      require(shapes.rows[t] <= (t < 8 ? 16 : 0) && shapes.row_bytes[t] <= (t < 8 ? 64 : 0), "tile ", t, ": a shape");
      require((shapes.rows[t] == 0) == (shapes.row_bytes[t] == 0), "tile ", t, ": half a shape");
    }
    state() = {shapes, {}};
  }
  static void release() { state() = {}; }

  template <int tile>
  static void load(const void* from, int64_t stride) {
    const Shape shape = shape_of<tile>();
    Tile& target = state().tiles[tile] = {};
    for (int64_t r = 0; r < shape.rows; ++r) {
      std::memcpy(target.row[r], static_cast<const char*>(from) + r * stride, shape.row_bytes);
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    const Shape shape = shape_of<tile>();
    for (int64_t r = 0; r < shape.rows; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, state().tiles[tile].row[r], shape.row_bytes);
    }
  }
  template <int c, int a, int b>
  static void dot() {
    static_assert(c != a && c != b && a != b);
    const Shape target = shape_of<c>(), left = shape_of<a>(), right = shape_of<b>();
    require(target.rows == left.rows && target.row_bytes == right.row_bytes &&
                left.row_bytes == 4 * static_cast<size_t>(right.rows),
            "tiles ", c, ", ", a, ", ", b, ": shapes that do not fit");
    const Tile &in = state().tiles[a], &lines = state().tiles[b];
    for (int64_t m = 0; m < target.rows; ++m) {
      float even[kColumns] = {}, odd[kColumns] = {}, sum[kColumns];
      for (int64_t k = 0; k < right.rows; ++k) {
        uint32_t pair, line[kColumns];
        std::memcpy(&pair, in.row[m] + 4 * k, sizeof(pair));
        std::memcpy(line, lines.row[k], sizeof(line));
        for (size_t n = 0; n < kColumns; ++n) {
          even[n] = std::fma(lower(pair), lower(line[n]), even[n]);
          odd[n] = std::fma(upper(pair), upper(line[n]), odd[n]);
        }
      }
      unsigned char* row = state().tiles[c].row[m];
      std::memcpy(sum, row, sizeof(sum));
      for (size_t n = 0; n < kColumns; ++n) sum[n] += even[n] + odd[n];
      std::memcpy(row, sum, target.row_bytes);
    }
  }

 private:
  static constexpr size_t kColumns = 16;
  struct Tile {
    unsigned char row[16][64] = {};
  };
  struct State {
    TileShapes shapes;
    Tile tiles[8];
  };
  struct Shape {
    int64_t rows;
    size_t row_bytes;
  };

  static State& state() {
    static thread_local State own;
    return own;
  }
  template <int tile>
  static Shape shape_of() {
    const TileShapes& shapes = state().shapes;
    require(shapes.rows[tile] > 0, "tile ", tile, " has no shape");
    return {shapes.rows[tile], shapes.row_bytes[tile]};
  }
  static float lower(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
  static float upper(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000u); }
};

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
