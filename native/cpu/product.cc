// A task is a block of at most kRowBlock rows by a group of panels of 16 outputs; its accumulators stay in the second-level
// cache. Tasks of one weight follow each other, so that row blocks find it in the shared cache.
#include "cpu/product.h"

#include <algorithm>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/term.h"

namespace at_moe {

using cpu::Block;
using cpu::divide_up;
using cpu::few_rows;
using cpu::Kernels;
using cpu::kRowBlock;
using cpu::pass_rows;
using cpu::Product;
using cpu::ProductKernels;
using cpu::Range;
using cpu::RowFilter;
using cpu::Selection;
using cpu::Term;
using cpu::TermScratch;

namespace {

constexpr int64_t kUnit = 4;  // panels that go together
constexpr int64_t kMaxGroup = 8, kMaxLineGroup = 16;
constexpr int64_t kFewestRows = 64;  // of a block that is cut to make more tasks
constexpr int64_t kPad = 16;         // keeps rows of accumulators off one set of the first-level cache

// The cut of one product into tasks.
struct Plan {
  int64_t row_blocks = 1, group = 1, groups = 1, first_task = 0;
};

// Few rows: panels are streams of memory, several at once, of fewer tasks.
void cut_lines(const Kernels& kernels, int64_t pieces, int64_t rows, int64_t workers, Plan* cut) {
  const int64_t share = std::max<int64_t>(pieces / workers, 1);
  const int64_t unit = std::min(kernels.line_panels(pass_rows(kernels, rows)), kUnit);
  cut->group = std::clamp(share / 4, std::min(share, unit), kMaxLineGroup);
  if (cut->group >= unit) cut->group = cut->group / unit * unit;
}

// Many rows: a tile wants its panels, so that rows are cut before them where there is little to do.
void cut_tiles(int64_t pieces, int64_t rows, int64_t workers, Plan* cut) {
  cut->group = std::clamp(pieces / (8 * workers) / kUnit * kUnit, kUnit, kMaxGroup);
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

void CpuBackend::multiply(std::span<Product> products) {
  convert_operands(products);
  const ProductKernels kernels = product_kernels();
  const int64_t direct_rows = 2 * kernels.floats.line_rows;
  int64_t tasks = 0;
  const std::vector<Plan> plans = plan(kernels.floats, products, pool_.workers(), &tasks);
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
    const int64_t panel_floats = TermScratch::panel_floats(kernels.floats), acc_floats = block.rows * block.stride;
    const int64_t gathered_floats = TermScratch::gathered_floats(block.rows / 2, block.stride);
    float* memory = worker_scratch(worker, panel_floats + acc_floats + gathered_floats);
    block.acc = memory + panel_floats;
    const TermScratch scratch{memory, block.acc + acc_floats};

    std::memset(block.acc, 0, sizeof(float) * static_cast<size_t>(acc_floats));
    if (product.start) product.start(block);
    for_wanted(product, block, direct_rows, [&](const Block& part, const Selection& wanted) {
      for (const Term& term : product.terms) {
        const int64_t begin = std::max(block.row, term.begin), end = std::min(block.row + block.rows, term.end);
        if (begin >= end) continue;
        for (const Range& range : term.ranges) {
          Selection own;
          if (wanted.all) select(range.rows, begin, end, direct_rows, &own);
          add_term(kernels, term, part, range, begin, end, wanted.all ? own : wanted, scratch);
        }
      }
    });
    product.finish(block);
  });
}

}  // namespace at_moe
