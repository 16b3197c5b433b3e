// One term of a block of a product, over one range of its inputs.
#pragma once

#include "cpu/product.h"

namespace at_moe::cpu {

inline constexpr int64_t kRowBlock = 256;  // most rows of a block

// Up to here rows pass over packed panels as they come from memory, some rows at a time.
inline int64_t few_rows(const Kernels& kernels) { return 4 * kernels.line_rows; }
// Of a pass, that evenly many rows take.
inline int64_t pass_rows(const Kernels& kernels, int64_t rows) {
  return rows == 0 ? 1 : divide_up(rows, divide_up(rows, kernels.line_rows));
}

// Rows of a block: all, or the ones listed.
struct Selection {
  bool all = true;
  int64_t count = 0;
  int64_t rows[kRowBlock];
};

struct TermScratch {
  float* panels;
  float* gathered;

  static int64_t panel_floats(const Kernels& kernels) { return kernels.tile_panels * kBlockK * kPanel; }
  static int64_t gathered_floats(int64_t rows, int64_t acc_row) { return rows * (kBlockK + acc_row); }
};

// block += the term's products over the inputs of a range, of rows [begin, end), or of those that are selected.
void add_term(const ProductKernels& kernels, const Term& term, const Block& block, const Range& range, int64_t begin,
              int64_t end, const Selection& selection, const TermScratch& scratch);

}  // namespace at_moe::cpu
