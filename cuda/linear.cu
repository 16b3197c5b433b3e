// Forward of a linear group (contract: backend/ops/linear.h). N rows, d_in
// inputs, S stacked ranks; one launch of products (cuda/product.h), their elements each one chain over k:
//   early     h = A_cat x, hg = h ⊙ gate ⊙ scale          [N, S]    per segment and module, experts stacked
//   products  y_m = bias + W_m x + B_m hg + residual       [N, d_m]  terms: W over all rows, then B per segment
// Early tiles are taken first; a tile of y waits for them when it comes to its first B. hg, which carries all that the
// adapters add, is not rounded to 16 bits: B reads it as two operands, the rounded values and what rounding took away,
// which the early tiles write beside it.
// Many experts of which rows select few: gathered shrinks go before (cuda/gathered.h), and the tiles of y pass over blocks
// of 16 rows by 16 ranks that are all zeros. Orders of summation are the same, and so are the bits. Gathering y as well
// would cost more in reading and writing its sums than it saves (docs/performance.md).
#include <algorithm>
#include <map>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/gathered.h"
#include "cuda/product.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

namespace {

constexpr int kInputSlot = 0, kGatedSlot = 1;

// hg as an operand: the modules of a stack side by side, each from an aligned column on.
int64_t gated_cols(const AdapterStack& stack, DType type) {
  int64_t cols = 0;
  for (const AdapterStack::Module& module : stack.modules) {
    if (module.b) cols += operand_cols(module.b->cols(), type);
  }
  return cols;
}

Gates gates_of(const LinearForward& args, const AdapterStack& stack, const AdapterStack::Module& module) {
  return {args.routing.row(0), args.routing.stride, stack.gate_column + module.first};
}

Product shrink(const LinearForward& args, const AdapterSegment& segment, const AdapterStack::Module& module,
               const Matrix& x, const GatedOperand& gated) {
  const AdapterStack& stack = *segment.stack;
  Product product;
  product.begin = segment.begin;
  product.end = segment.end;
  product.cols = module.b->cols();
  product.terms.push_back({x, matrix_of(*stack.a).row_range(module.first, product.cols), segment.begin, segment.end});
  product.out = args.hg.col_range(module.first, product.cols);
  if (args.h) product.raw = args.h.col_range(module.first, product.cols);
  product.operand = gated.rounded;
  product.rest = gated.rest;
  product.gates = gates_of(args, stack, module);
  product.scale = stack.scale + module.first;
  return product;
}

// The columns of each gate of a stack; `gated` has modules side by side as gated_cols has.
std::map<int32_t, std::vector<ColumnRun>> runs_by_gate(const AdapterStack& stack, DType type) {
  std::map<int32_t, std::vector<ColumnRun>> runs;
  auto block = stack.blocks.begin();
  int64_t first = 0;
  for (const AdapterStack::Module& module : stack.modules) {
    if (!module.b) continue;
    const int64_t end = module.first + module.b->cols();
    for (; block != stack.blocks.end() && block->first < end; ++block) {
      runs[block->gate].push_back({static_cast<int>(block->first), static_cast<int>(block->count),
                                   static_cast<int>(first + block->first - module.first)});
    }
    first += operand_cols(module.b->cols(), type);
  }
  return runs;
}

}  // namespace

std::vector<OpenBlocks> CudaBackend::gather_shrinks(const LinearForward& args, std::span<const MixtureSegment> segments,
                                                    const Matrix& x, const GatedOperand& gated) {
  std::vector<OpenBlocks> maps;
  std::vector<RowList> lists;
  std::vector<GatheredProduct> shrinks;
  for (const MixtureSegment& segment : segments) {
    if (!segment.gathered) continue;
    const AdapterStack& stack = *segment.stack;
    const int begin = static_cast<int>(segment.begin), end = static_cast<int>(segment.end);
    int64_t first = 0;
    for (const AdapterStack::Module& module : stack.modules) {
      if (!module.b) continue;
      const int64_t cols = module.b->cols();
      OpenBlocks& map = maps.emplace_back();
      map.begin = begin;
      map.end = end;
      map.cols = static_cast<int>(cols);
      map.gate_column = stack.gate_column + module.first;
      if (args.h) map.raw = args.h.col_range(module.first, cols);
      if (args.h) map.gated = args.hg.col_range(module.first, cols);
      const GatedOperand own = gated.col_range(first, cols);
      map.operand = own.rounded;
      map.rest = own.rest;
      first += operand_cols(cols, activation_);
    }
    for (auto& [gate, runs] : runs_by_gate(stack, activation_)) {
      shrinks.push_back({lists.size(), x, matrix_of(*stack.a), 0, std::move(runs), stack.scale});
      lists.push_back({begin, end, gate, nullptr, nullptr});
    }
  }
  map_blocks(args.routing, maps);
  multiply_gathered(Form::kNT, lists, shrinks, args.routing,
                    {args.h, args.h ? args.hg : Matrix(), gated.rounded, gated.rest});
  return maps;
}

void CudaBackend::forward(const LinearForward& args) {
  const int64_t rows = args.x.rows;
  const std::vector<MixtureSegment> segments = segments_of(args.segments, rows);
  require(segments.empty() || (args.hg && args.routing), "linear: adapters need hg and routing");
  std::vector<Matrix> inputs = {args.x, args.shrink_x};
  make_operands(kInputSlot, activation_, inputs);
  const Matrix &x = inputs[0], &shrink_x = args.shrink_x ? inputs[1] : x;
  std::vector<Product> shrinks, products;
  for (const LinearModule& module : args.modules) {
    Product& product = products.emplace_back();
    product.end = rows;
    product.cols = module.weight->rows();
    product.terms.push_back({x, view_of(*module.weight), 0, rows});
    product.bias = module.bias;
    product.out = module.y;
    product.add = args.residual;
  }
  int64_t widest = 0;
  for (const MixtureSegment& segment : segments) widest = std::max(widest, gated_cols(*segment.stack, activation_));
  const bool rounds = activation_ != DType::f32;
  const int64_t cols = rounds ? 2 * widest : widest, element = static_cast<int64_t>(size_of(activation_));
  const Matrix memory = matrix(scratch<char>(kGatedSlot, rows * cols * element), rows, cols, activation_);
  const GatedOperand gated{memory.col_range(0, widest), rounds ? memory.col_range(widest, widest) : Matrix()};
  const std::vector<OpenBlocks> maps = gather_shrinks(args, segments, shrink_x, gated);
  auto map = maps.begin();
  for (const MixtureSegment& segment : segments) {
    int64_t first = 0;
    for (size_t m = 0; m < products.size(); ++m) {
      const AdapterStack::Module& module = segment.stack->modules[m];
      if (!module.b) continue;
      const GatedOperand own = gated.col_range(first, module.b->cols());
      if (!segment.gathered) shrinks.push_back(shrink(args, segment, module, shrink_x, own));
      const Gates gates = gates_of(args, *segment.stack, module);
      const uint8_t* open = segment.gathered ? map++->open : nullptr;
      for (const Matrix& part : {own.rounded, own.rest}) {
        if (!part) continue;
        products[m].terms.push_back(
            {part, matrix_of(*module.b), segment.begin, segment.end, !segment.gathered, gates, open});
      }
      first += operand_cols(module.b->cols(), activation_);
    }
  }
  multiply(Form::kNT, activation_, shrinks, products);
}

}  // namespace at_moe::cuda
