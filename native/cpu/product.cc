// A task is a block of at most kRowBlock rows by a group of panels of 16 outputs; its accumulators stay in the second-level
// cache. Few rows: the packed panels are streamed once (Kernels::lines). Many rows: a panel of kBlockK inputs is widened to
// f32 and all rows of the block pass over it (Kernels::multiply). Both add the same values in the same order. Weights of q8
// meet rows that were quantised before, whatever their number (IntegerKernels). Tasks of one weight follow each other, so
// that row blocks find it in the shared cache.
#include "cpu/product.h"

#include <algorithm>
#include <cstring>

#include "backend/ops/linear.h"
#include "cpu/backend.h"

namespace at_moe {

using cpu::Block;
using cpu::Dots;
using cpu::IntegerKernels;
using cpu::kBlockK;
using cpu::Kernels;
using cpu::Lines;
using cpu::Product;
using cpu::QuantizedRows;
using cpu::Range;
using cpu::RowFilter;
using cpu::Term;
using cpu::Tile;

namespace {

constexpr int64_t kRowBlock = 256;
constexpr int64_t kFewestRows = 64;  // of a block that is cut to make more tasks
constexpr int64_t kMaxGroup = 8;
constexpr int64_t kStreams = 4;  // panels side by side
constexpr int64_t kMaxLineGroup = 16;
constexpr int64_t kLinePasses = 4;
constexpr int64_t kPad = 16;  // keeps rows of accumulators off one set of the first-level cache

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The cut of one product into tasks.
struct Plan {
  int64_t row_blocks = 1, group = 1, groups = 1, first_task = 0;
};

// Up to here rows pass over packed panels as they come from memory, some rows at a time.
int64_t few_rows(const Kernels& kernels) { return kLinePasses * kernels.line_rows; }

// Rows of a pass.
int64_t pass_rows(const Kernels& kernels, int64_t rows) {
  return rows == 0 ? 1 : divide_up(rows, divide_up(rows, kernels.line_rows));
}

// Few rows: panels are streams of memory, several at once, of fewer tasks.
void cut_lines(const Kernels& kernels, int64_t pieces, int64_t rows, int64_t workers, Plan* cut) {
  const int64_t share = std::max<int64_t>(pieces / workers, 1),
                unit = std::min(kernels.line_panels(pass_rows(kernels, rows)), kStreams);
  cut->group = std::clamp(share / 4, std::min(share, unit), kMaxLineGroup);
  if (cut->group >= unit) cut->group = cut->group / unit * unit;
}

// Many rows: a tile wants its panels, so that rows are cut before them where there is little to do.
void cut_tiles(int64_t pieces, int64_t rows, int64_t workers, Plan* cut) {
  cut->group = std::clamp(pieces / (8 * workers) / kStreams * kStreams, kStreams, kMaxGroup);
  const int64_t more = divide_up(4 * workers * cut->group, pieces);
  const int64_t blocks = std::max(cut->row_blocks, std::min(more * cut->row_blocks, rows / kFewestRows));
  const int64_t tasks = pieces * blocks / cut->row_blocks;
  cut->row_blocks = blocks;
  if (tasks < 2 * workers * cut->group) cut->group = std::max<int64_t>(tasks / (2 * workers), 1);
}

std::vector<Plan> plan(const Kernels& kernels, std::span<const Product> products, int64_t workers, int64_t* tasks) {
  int64_t pieces = 0;
  for (const Product& p : products) pieces += divide_up(p.cols, kPanel) * divide_up(p.end - p.begin, kRowBlock);
  std::vector<Plan> plans;
  *tasks = 0;
  for (const Product& p : products) {
    Plan cut;
    const int64_t rows = p.end - p.begin, panels = divide_up(p.cols, kPanel);
    cut.row_blocks = divide_up(rows, kRowBlock);
    if (rows <= few_rows(kernels)) cut_lines(kernels, pieces, rows, workers, &cut);
    else cut_tiles(pieces, rows, workers, &cut);
    cut.group = std::min(cut.group, panels);
    cut.groups = divide_up(panels, cut.group);
    cut.first_task = *tasks;
    *tasks += cut.row_blocks * cut.groups;
    plans.push_back(cut);
  }
  return plans;
}

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

// Inputs [k, k + n), at most kBlockK.
void add_tiles(const Kernels& kernels, const Term& term, const Block& block, const Rows& rows, int64_t k, int64_t n,
               float* scratch) {
  Tile tile;
  tile.rows = rows.count;
  tile.k = n;
  tile.a = rows.a;
  tile.a_row = rows.a_row;
  tile.acc_row = block.stride;
  const int64_t panels = divide_up(block.cols, kPanel);
  for (int64_t p = 0; p < panels; p += kernels.tile_panels) {
    tile.panels = std::min(kernels.tile_panels, panels - p);
    tile.acc = rows.acc + p * kPanel;
    load_panels(kernels, term, block.col / kPanel + p, tile.panels, k, n, scratch, &tile);
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

void add_all(const Kernels& kernels, const Term& term, const Block& block, const Range& range, int64_t begin,
             int64_t end, float* scratch) {
  Rows rows{end - begin, nullptr, term.a.stride, block.at(begin)};
  if (few(kernels, term, rows.count)) {
    rows.a = term.a.row(begin) + range.begin;
    return add_lines(kernels, term, block, rows, range.begin, range.end);
  }
  for_pieces(range, [&](int64_t k, int64_t n) {
    rows.a = term.a.row(begin) + k;
    add_tiles(kernels, term, block, rows, k, n, scratch);
  });
}

void add_dots(const IntegerKernels& kernels, const Term& term, const Block& block, int64_t begin, int64_t end) {
  const CpuWeight& w = *term.weight;
  Dots dots;
  dots.rows = end - begin;
  dots.panels = divide_up(block.cols, kPanel);
  dots.blocks = q8_blocks(w.cols());
  dots.w = w.panel(block.col / kPanel);
  dots.w_panel = w.panel_bytes();
  dots.a = term.quantized.data + begin * kernels.row_bytes;
  dots.a_block = term.quantized.block;
  dots.acc = block.at(begin);
  dots.acc_row = block.stride;
  kernels.multiply(dots);
}

// Rows of a block: all, or the ones listed.
struct Selection {
  bool all = true;
  int64_t count = 0;
  int64_t rows[kRowBlock];
};

// Up to half of many rows are worth copying side by side.
void select(const RowFilter& filter, int64_t begin, int64_t end, int64_t direct_rows, Selection* selection) {
  selection->all = filter.gates.empty();
  selection->count = 0;
  if (selection->all) return;
  for (int64_t n = begin; n < end; ++n) {
    if (filter(n)) selection->rows[selection->count++] = n;
  }
  selection->all = selection->count > 0 && (end - begin <= direct_rows || 2 * selection->count > end - begin);
}

// Inputs and accumulators are copied to rows that follow each other; `gathered` has room for both.
void add_selected(const Kernels& kernels, const Term& term, const Block& block, const Range& range,
                  const Selection& selection, float* scratch, float* gathered) {
  if (selection.count == 0) return;
  float* acc = gathered + selection.count * kBlockK;
  const size_t line = sizeof(float) * static_cast<size_t>(divide_up(block.cols, kPanel) * kPanel);
  for (int64_t i = 0; i < selection.count; ++i) std::memcpy(acc + i * block.stride, block.at(selection.rows[i]), line);
  for_pieces(range, [&](int64_t k, int64_t n) {
    for (int64_t i = 0; i < selection.count; ++i) {
      std::memcpy(gathered + i * n, term.a.row(selection.rows[i]) + k, sizeof(float) * static_cast<size_t>(n));
    }
    const Rows rows{selection.count, gathered, n, acc};
    if (few(kernels, term, rows.count)) add_lines(kernels, term, block, rows, k, k + n);
    else add_tiles(kernels, term, block, rows, k, n, scratch);
  });
  for (int64_t i = 0; i < selection.count; ++i) std::memcpy(block.at(selection.rows[i]), acc + i * block.stride, line);
}

// f(neighbouring panels of a block, the rows that want them): panels that all rows want together, the others alone.
template <typename Function>
void for_wanted(const Product& product, const Block& block, int64_t direct_rows, Function&& fn) {
  Selection selection;
  if (product.panel_rows.empty()) return fn(block, selection);
  const int64_t panels = divide_up(block.cols, kPanel), first = block.col / kPanel;
  const auto part = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    Block own = block;
    own.col += begin * kPanel;
    own.cols = std::min(block.cols, end * kPanel) - begin * kPanel;
    own.acc += begin * kPanel;
    fn(own, selection);
  };
  int64_t begin = 0;  // of the panels that all rows want
  for (int64_t p = 0; p < panels; ++p) {
    const RowFilter& filter = product.panel_rows[static_cast<size_t>(first + p)];
    select(filter, block.row, block.row + block.rows, direct_rows, &selection);
    if (selection.all) continue;
    Selection own = selection;
    selection.all = true;
    part(begin, p);
    selection = own;
    part(p, p + 1);
    begin = p + 1;
  }
  selection.all = true;
  part(begin, panels);
}

}  // namespace

void CpuBackend::multiply(std::span<const Product> products) {
  const Kernels& kernels = kernels_;
  int64_t tasks = 0;
  const std::vector<Plan> plans = plan(kernels, products, pool_.workers(), &tasks);
  pool_.run(tasks, [&](int64_t task, int worker) {
    size_t index = 0;
    while (index + 1 < plans.size() && plans[index + 1].first_task <= task) ++index;
    const Product& product = products[index];
    const Plan& cut = plans[index];
    const int64_t local = task - cut.first_task;
    const int64_t group = local / cut.row_blocks, row_block = local % cut.row_blocks;
    const int64_t rows = product.end - product.begin;

    Block block;
    block.row = product.begin + rows * row_block / cut.row_blocks;
    block.rows = product.begin + rows * (row_block + 1) / cut.row_blocks - block.row;
    block.col = group * cut.group * kPanel;
    block.cols = std::min(cut.group * kPanel, product.cols - block.col);
    block.stride = cut.group * kPanel + kPad;
    const int64_t direct_rows = 2 * kernels.line_rows;
    const int64_t panel_floats = kernels.tile_panels * kBlockK * kPanel, acc_floats = block.rows * block.stride;
    const int64_t gathered_floats = block.rows / 2 * (kBlockK + block.stride);
    float* scratch = worker_scratch(worker, panel_floats + acc_floats + gathered_floats);
    block.acc = scratch + panel_floats;
    float* gathered = block.acc + acc_floats;

    std::memset(block.acc, 0, sizeof(float) * static_cast<size_t>(acc_floats));
    if (product.start) product.start(block);
    for_wanted(product, block, direct_rows, [&](const Block& part, const Selection& wanted) {
      for (const Term& term : product.terms) {
        const int64_t begin = std::max(block.row, term.begin), end = std::min(block.row + block.rows, term.end);
        if (begin >= end) continue;
        if (term.quantized.data) {
          add_dots(*integers_, term, part, begin, end);
          continue;
        }
        for (const Range& range : term.ranges) {
          Selection own;
          if (wanted.all) select(range.rows, begin, end, direct_rows, &own);
          const Selection& selection = wanted.all ? own : wanted;
          if (selection.all) add_all(kernels, term, part, range, begin, end, scratch);
          else add_selected(kernels, term, part, range, selection, scratch, gathered);
        }
      }
    });
    product.finish(block);
  });
}

QuantizedRows CpuBackend::quantize_rows(int slot, const Matrix& x) {
  constexpr int64_t kPiece = 32 * kQ8Block, kGrain = 4;
  const IntegerKernels& kernels = *integers_;
  // An odd number of cache lines, so that the blocks of a row lie in different sets.
  const int64_t block = (divide_up(x.rows * kernels.row_bytes, 64) | 1) * 64;
  char* data = shared_scratch<char>(slot, q8_blocks(x.cols) * block);
  const int64_t pieces = divide_up(x.cols, kPiece);
  pool_.run_ranges(x.rows * pieces, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / pieces, from = piece % pieces * kPiece;
      kernels.quantize(x.row(row) + from, std::min(kPiece, x.cols - from),
                       data + from / kQ8Block * block + row * kernels.row_bytes, block);
    }
  });
  return {data, block};
}

}  // namespace at_moe
