// Rows of 8-bit activations by packed panels of q8 (kernels.h), in tiles of byte_tiles.h: 8 x 3 with AVX-512 (24 of 32
// registers) and 6 x 1 with AVX2 (12 of 16) where one instruction is a dot; 8 x 2, 4 x 1 and, with SSE4, 2 x 1 where two
// pairs of them are; 6 x 1 with NEON.
#include "cpu/simd/byte_tiles.h"
#include "cpu/simd/row_tiles.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

struct Bytes {
  static constexpr int kRows = Dot::kRows, kRowStep = 1;
  static constexpr int64_t kPieceBlocks = 4;
  static constexpr int panels(int rows) { return Dot::panels(rows); }
  template <int R, int P>
  static constexpr auto tile = byte_tile<R, P>;
};

}  // namespace

void dots(const Dots& all) { RowTiles<Bytes>::multiply(all, sizeof(RowBlock)); }

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
