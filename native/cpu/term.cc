// Weights whose storage has instructions of dot products meet rows that were converted before, whatever their number
// (DotKernels); for the transposed product, panels are turned in scratch. The others are products of f32. Few rows:
// the packed panels are streamed once (Kernels::lines). Many rows: a panel of kBlockK inputs is widened to f32 and
// all rows of the block pass over it (Kernels::multiply). Both add the same values in the same order.
#include "cpu/term.h"

#include <algorithm>
#include <cstring>

namespace at_moe::cpu {

namespace {

// f32 panels [first, first + count) of inputs [k, k + n) of a term, in `scratch` unless they lie ready.
void load_panels(const Kernels& kernels, const Term& term, int64_t first, int64_t count, int64_t k, int64_t n,
                 float* scratch, Tile* tile) {
  const CpuWeight& w = *term.weight;
  const int storage = static_cast<int>(w.storage());
  tile->b = scratch;
  tile->b_panel = kBlockK * kPanel;
  if (term.transposed) {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t input = (first + p) * kPanel;
      for (int64_t i = 0; i < n; i += kPanel) {
        kernels.widen_transposed[storage](w.panel((k + i) / kPanel), input, std::min(kPanel, w.cols() - input),
                                          scratch + p * kBlockK * kPanel + i * kPanel, kPanel);
      }
    }
  } else if (w.storage() == Storage::f32) {
    tile->b = reinterpret_cast<const float*>(w.panel(first)) + k * kPanel;
    tile->b_panel = w.panel_bytes() / static_cast<int64_t>(sizeof(float));
  } else {
    for (int64_t p = 0; p < count; ++p)
      kernels.widen[storage](w.panel(first + p), k, n, scratch + p * kBlockK * kPanel);
  }
}

// What load_panels reads for panels [first, first + count) of inputs [k, k + n).
Ahead stored_panels(const Term& term, int64_t first, int64_t count, int64_t k, int64_t n) {
  const CpuWeight& w = *term.weight;
  const int64_t panel = term.transposed ? k / kPanel : first, streams = term.transposed ? divide_up(n, kPanel) : count;
  const int64_t input = term.transposed ? first * kPanel : k, end = term.transposed ? (first + count) * kPanel : k + n;
  const int64_t from = w.offset(input);
  return {w.panel(panel) + from, streams, w.offset(std::min(end, w.cols())) - from, w.panel_bytes()};
}

// Rows of the inputs from some column of a term on, and of the accumulators of a block.
struct Rows {
  int64_t count;
  const float* a;
  int64_t a_row;
  float* acc;
};

// Inputs [from, to), the first of which are at rows.a.
void add_lines(const Kernels& kernels, const Term& term, const Block& block, const Rows& rows, int64_t from,
               int64_t to) {
  const CpuWeight& w = *term.weight;
  Lines lines;
  lines.w_panel = w.panel_bytes();
  lines.a_row = rows.a_row;
  lines.acc_row = block.stride;
  const auto add = [&](int64_t row, int64_t count, int64_t panel, int64_t panels, int64_t k, int64_t n) {
    lines.rows = count;
    lines.panels = panels;
    lines.begin = k;
    lines.k = n;
    lines.w = w.panel(block.col / kPanel + panel);
    lines.a = rows.a + row * rows.a_row + k - from;
    lines.acc = rows.acc + row * block.stride + panel * kPanel;
    kernels.lines[static_cast<int>(w.storage())](lines);
  };
  const int64_t panels = divide_up(block.cols, kPanel);
  if (rows.count <= kernels.line_rows) return add(0, rows.count, 0, panels, from, to - from);
  // All but the first pass find each piece of some panels in the first-level cache.
  const int64_t pass = pass_rows(kernels, rows.count), streams = kernels.line_panels(pass);
  for (int64_t p = 0; p < panels; p += streams) {
    const int64_t some = std::min(streams, panels - p);
    for (int64_t k = from; k < to; k += kBlockK) {
      const int64_t n = std::min(kBlockK, to - k);
      for (int64_t row = 0; row < rows.count; row += pass) add(row, std::min(pass, rows.count - row), p, some, k, n);
    }
  }
}

// Inputs [k, k + n), at most kBlockK, of a range.
void add_tiles(const Kernels& kernels, const Term& term, const Block& block, const Rows& rows, const Range& range,
               int64_t k, int64_t n, float* scratch) {
  Tile tile;
  tile.rows = rows.count;
  tile.k = n;
  tile.a = rows.a;
  tile.a_row = rows.a_row;
  tile.acc_row = block.stride;
  const int64_t panels = divide_up(block.cols, kPanel), first = block.col / kPanel, most = kernels.tile_panels;
  for (int64_t p = 0; p < panels; p += most) {
    tile.panels = std::min(most, panels - p);
    tile.acc = rows.acc + p * kPanel;
    load_panels(kernels, term, first + p, tile.panels, k, n, scratch, &tile);
    if (p + most < panels) {
      tile.ahead = stored_panels(term, first + p + most, std::min(most, panels - p - most), k, n);
    } else if (k + n < range.end) {
      tile.ahead = stored_panels(term, first, std::min(most, panels), k + n, std::min(kBlockK, range.end - k - n));
    } else {
      tile.ahead = {};
    }
    kernels.multiply(tile);
  }
}

bool few(const Kernels& kernels, const Term& term, int64_t rows) {
  return !term.transposed && rows <= few_rows(kernels);
}

// f(k, n) for the pieces of a range that lie in one block of kBlockK inputs.
template <typename Function>
void for_pieces(const Range& range, Function&& fn) {
  for (int64_t k = range.begin; k < range.end;) {
    const int64_t n = std::min(range.end, k / kBlockK * kBlockK + kBlockK) - k;
    fn(k, n);
    k += n;
  }
}

// Converted rows from some block of inputs on, and their accumulators.
struct DotRows {
  int64_t count;
  const char* a;
  int64_t a_block;  // bytes
  float* acc;
};

const char* input(const ConvertedRows& rows, const DotKernels& kernels, int64_t row, int64_t k) {
  return rows.data + k / kDotBlock * rows.block + (row - rows.first) * kernels.row_bytes;
}

// Inputs [from, to), the first of which are at rows.a, of the weight as it is.
void add_dots(const DotKernels& kernels, const Term& term, const Block& block, const DotRows& rows, int64_t from,
              int64_t to) {
  const CpuWeight& w = *term.weight;
  Dots dots;
  dots.rows = rows.count;
  dots.panels = divide_up(block.cols, kPanel);
  dots.begin = from / kDotBlock;
  dots.blocks = divide_up(to - from, kDotBlock);
  dots.inputs = w.cols();
  dots.w = w.panel(block.col / kPanel);
  dots.w_panel = w.panel_bytes();
  dots.a = rows.a;
  dots.a_block = rows.a_block;
  dots.acc = rows.acc;
  dots.acc_row = block.stride;
  kernels.multiply(dots);
}

// The same of the transposed weight: outputs [from, to).
void add_turned_dots(const ProductKernels& kernels, const Term& term, const Block& block, const DotRows& rows,
                     int64_t from, int64_t to, float* scratch) {
  constexpr int64_t kTile = kPanel * kPanel * 2, kTurnedPanel = kBlockK / kPanel * kTile;  // bytes
  const CpuWeight& w = *term.weight;
  char* turned = reinterpret_cast<char*>(scratch);
  const int64_t most = TermScratch::panel_floats(kernels.floats) * 4 / kTurnedPanel;
  const int64_t panels = divide_up(block.cols, kPanel), first = block.col / kPanel;
  Dots dots;
  dots.rows = rows.count;
  dots.w = turned;
  dots.w_panel = kTurnedPanel;
  dots.a_block = rows.a_block;
  dots.acc_row = block.stride;
  for (int64_t k = from; k < to; k += kBlockK) {
    dots.inputs = std::min(kBlockK, to - k);
    dots.blocks = divide_up(dots.inputs, kDotBlock);
    dots.a = rows.a + (k - from) / kDotBlock * rows.a_block;
    for (int64_t p = 0; p < panels; p += most) {
      dots.panels = std::min(most, panels - p);
      for (int64_t i = 0; i < dots.panels; ++i) {
        const int64_t input = (first + p + i) * kPanel;
        for (int64_t o = 0; o < dots.inputs; o += kPanel) {
          kernels.pairs->turn(w.panel((k + o) / kPanel), input, std::min(kPanel, w.cols() - input),
                              turned + i * kTurnedPanel + o / kPanel * kTile);
        }
      }
      dots.acc = rows.acc + p * kPanel;
      kernels.pairs->multiply(dots);
    }
  }
}

void add_converted(const ProductKernels& kernels, const Term& term, const Block& block, const DotRows& rows,
                   int64_t from, int64_t to, float* scratch) {
  if (term.transposed) add_turned_dots(kernels, term, block, rows, from, to, scratch);
  else add_dots(*kernels.dots(*term.weight, false), term, block, rows, from, to);
}

void add_all(const ProductKernels& kernels, const Term& term, const Block& block, const Range& range, int64_t begin,
             int64_t end, float* scratch) {
  if (const DotKernels* dots = kernels.dots(*term.weight, term.transposed)) {
    const ConvertedRows& converted = term.converted();
    const DotRows rows{end - begin, input(converted, *dots, begin, range.begin), converted.block, block.at(begin)};
    return add_converted(kernels, term, block, rows, range.begin, range.end, scratch);
  }
  Rows rows{end - begin, nullptr, term.a.rows.stride, block.at(begin)};
  if (few(kernels.floats, term, rows.count)) {
    rows.a = term.a.rows.row(begin) + range.begin;
    return add_lines(kernels.floats, term, block, rows, range.begin, range.end);
  }
  for_pieces(range, [&](int64_t k, int64_t n) {
    rows.a = term.a.rows.row(begin) + k;
    add_tiles(kernels.floats, term, block, rows, range, k, n, scratch);
  });
}

// The blocks of converted rows that hold inputs [k, k + n) of the selected rows, copied to rows that follow each
// other.
DotRows gather(const DotKernels& kernels, const ConvertedRows& rows, const Selection& selection, int64_t k, int64_t n,
               float* gathered, float* acc) {
  char* out = reinterpret_cast<char*>(gathered);
  const DotRows result{selection.count, out, selection.count * kernels.row_bytes, acc};
  for (int64_t at = k; at < k + n; at += kDotBlock) {
    for (int64_t i = 0; i < selection.count; ++i, out += kernels.row_bytes) {
      std::memcpy(out, input(rows, kernels, selection.rows[i], at), static_cast<size_t>(kernels.row_bytes));
    }
  }
  return result;
}

// Inputs and accumulators are copied to rows that follow each other.
void add_selected(const ProductKernels& kernels, const Term& term, const Block& block, const Range& range,
                  const Selection& selection, const TermScratch& scratch) {
  if (selection.count == 0) return;
  const DotKernels* dots = kernels.dots(*term.weight, term.transposed);
  float* gathered = scratch.gathered;
  float* acc = gathered + selection.count * kBlockK;
  const size_t line = sizeof(float) * static_cast<size_t>(divide_up(block.cols, kPanel) * kPanel);
  for (int64_t i = 0; i < selection.count; ++i) std::memcpy(acc + i * block.stride, block.at(selection.rows[i]), line);
  for_pieces(range, [&](int64_t k, int64_t n) {
    if (dots) {
      const DotRows rows = gather(*dots, term.converted(), selection, k, n, gathered, acc);
      return add_converted(kernels, term, block, rows, k, k + n, scratch.panels);
    }
    for (int64_t i = 0; i < selection.count; ++i) {
      std::memcpy(gathered + i * n, term.a.rows.row(selection.rows[i]) + k, sizeof(float) * static_cast<size_t>(n));
    }
    const Rows rows{selection.count, gathered, n, acc};
    if (few(kernels.floats, term, rows.count)) add_lines(kernels.floats, term, block, rows, k, k + n);
    else add_tiles(kernels.floats, term, block, rows, range, k, n, scratch.panels);
  });
  for (int64_t i = 0; i < selection.count; ++i) std::memcpy(block.at(selection.rows[i]), acc + i * block.stride, line);
}

}  // namespace

void add_term(const ProductKernels& kernels, const Term& term, const Block& block, const Range& range, int64_t begin,
              int64_t end, const Selection& selection, const TermScratch& scratch) {
  if (selection.all) add_all(kernels, term, block, range, begin, end, scratch.panels);
  else add_selected(kernels, term, block, range, selection, scratch);
}

}  // namespace at_moe::cpu
