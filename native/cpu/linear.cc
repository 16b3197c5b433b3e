// Forward of a linear group (backend/ops/linear.h): one job for the shrink of all segments, one for all modules. Each
// module is a product of two kinds of terms on one accumulator: its weight over all rows, and, for each segment, the
// adapter's B over the segment's rows; the residual is added when a block is done.
#include <algorithm>
#include <cstring>

#include "backend/segments.h"
#include "core/status.h"
#include "cpu/adapter.h"
#include "cpu/backend.h"
#include "cpu/product.h"

namespace at_moe {

using cpu::Block;
using cpu::Forms;
using cpu::kDotBlock;
using cpu::Operand;
using cpu::Product;
using cpu::ProductKernels;
using cpu::Term;

namespace {

constexpr int kInputSlot = 0, kShrinkSlot = 1;

Term term_of(const Weight* weight, int64_t begin, int64_t end, const Operand& a) {
  Term term;
  term.weight = static_cast<const CpuWeight*>(weight);
  term.begin = begin;
  term.end = end;
  term.a = a;
  term.ranges.push_back({0, weight->cols()});
  return term;
}

std::function<void(const Block&)> start_with_bias(const float* bias) {
  if (!bias) return {};
  return [bias](const Block& block) {
    for (int64_t n = 0; n < block.rows; ++n) {
      std::memcpy(block.acc + n * block.stride, bias + block.col, sizeof(float) * static_cast<size_t>(block.cols));
    }
  };
}

std::function<void(const Block&)> finish_into(const Matrix& y, const Matrix& residual) {
  return [y, residual](const Block& block) {
    for (int64_t n = block.row; n < block.row + block.rows; ++n) {
      const float* acc = block.at(n);
      float* out = y.row(n) + block.col;
      if (residual) {
        const float* add = residual.row(n) + block.col;
        for (int64_t i = 0; i < block.cols; ++i) out[i] = acc[i] + add[i];
      } else {
        std::memcpy(out, acc, sizeof(float) * static_cast<size_t>(block.cols));
      }
    }
  };
}

// hg, and h if it is kept, of a block of sums, by runs of columns that share a gate.
void apply_gates(const LinearForward& args, const AdapterStack& stack, const Block& block) {
  const int64_t end = block.col + block.cols;
  const auto touching =
      std::upper_bound(stack.blocks.begin(), stack.blocks.end(), block.col,
                       [](int64_t col, const AdapterStack::Block& gated) { return col < gated.first + gated.count; });
  for (int64_t n = block.row; n < block.row + block.rows; ++n) {
    const float* routing = args.routing.row(n);
    for (auto gated = touching; gated != stack.blocks.end() && gated->first < end; ++gated) {
      const int64_t first = std::max(gated->first, block.col);
      const int64_t count = std::min(gated->first + gated->count, end) - first;
      const float gate = routing[gated->gate];
      const float *sums = block.at(n) + first - block.col, *scale = stack.scale + first;
      float* hg = args.hg.row(n) + first;
      for (int64_t j = 0; j < count; ++j) hg[j] = gate == 0 ? 0 : sums[j] * gate * scale[j];
      if (!args.h) continue;
      float* h = args.h.row(n) + first;
      for (int64_t j = 0; j < count; ++j) h[j] = gate == 0 ? 0 : sums[j];
    }
  }
}

Product shrink(const LinearForward& args, const AdapterSegment& segment, const Operand& x) {
  const AdapterStack* stack = segment.stack;
  Product product;
  product.begin = segment.begin;
  product.end = segment.end;
  product.cols = stack->a->rows();
  product.terms.push_back(term_of(stack->a, segment.begin, segment.end, x));
  product.finish = [&args, stack](const Block& block) { apply_gates(args, *stack, block); };
  product.panel_rows = panel_rows(args.routing, *stack, 0, product.cols);
  return product;
}

}  // namespace

void CpuBackend::forward(const LinearForward& args) {
  const int64_t rows = args.x.rows;
  if (rows == 0) return;
  const std::vector<AdapterSegment> segments = merge_segments(args.segments, rows);
  const ProductKernels kernels = product_kernels();
  Forms forms, shrink_forms;
  for (const LinearModule& module : args.modules) kernels.add_form(*module.weight, false, &forms);
  for (const AdapterSegment& segment : segments) {
    kernels.add_form(*segment.stack->a, false, args.shrink_x ? &shrink_forms : &forms);
  }
  const Operand x = operand(kInputSlot, args.x, forms);

  if (!segments.empty()) {
    require(args.hg && args.routing, "linear: adapters need hg and routing");
    const Operand shrink_x = args.shrink_x ? operand(kShrinkSlot, args.shrink_x, shrink_forms) : x;
    std::vector<Product> products;
    products.reserve(segments.size());
    for (const AdapterSegment& segment : segments) products.push_back(shrink(args, segment, shrink_x));
    multiply(products);
  }

  std::vector<GateRanges> gates;
  gates.reserve(segments.size());
  for (const AdapterSegment& segment : segments) gates.emplace_back(args.routing, segment);
  std::vector<Product> products;
  products.reserve(args.modules.size());
  for (size_t m = 0; m < args.modules.size(); ++m) {
    const LinearModule& module = args.modules[m];
    Product product;
    product.end = rows;
    product.cols = module.weight->rows();
    product.terms.push_back(term_of(module.weight, 0, rows, x));
    for (size_t s = 0; s < segments.size(); ++s) {
      const AdapterStack::Module& adapter = segments[s].stack->modules[m];
      if (!adapter.b) continue;
      const int64_t rank = adapter.b->cols();
      Operand gated;
      gated.rows = args.hg.col_range(adapter.first, rank);
      Term term = term_of(adapter.b, segments[s].begin, segments[s].end, gated);
      const bool blocks = kernels.dots(*adapter.b, false) || is_blocks(adapter.b->storage());
      term.ranges = gates[s].in(adapter.first, adapter.first + rank, blocks ? kDotBlock : 2);
      if (!term.ranges.empty()) product.terms.push_back(std::move(term));
    }
    product.start = start_with_bias(module.bias);
    product.finish = finish_into(module.y, args.residual);
    products.push_back(std::move(product));
  }
  multiply(products);
}

}  // namespace at_moe
