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

// h of ranks that share a gate, and hg = h ⊙ gate ⊙ scale; both exact zeros where the gate is closed.
void apply_gate(float gate, const float* acc, const float* scale, int64_t ranks, float* h, float* hg) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(ranks);
  if (gate == 0) {
    std::memset(hg, 0, bytes);
    if (h) std::memset(h, 0, bytes);
    return;
  }
  for (int64_t j = 0; j < ranks; ++j) hg[j] = acc[j] * gate * scale[j];
  if (h) std::memcpy(h, acc, bytes);
}

Product shrink(const LinearForward& args, const AdapterSegment& segment, const Operand& x) {
  const AdapterStack* stack = segment.stack;
  Product product;
  product.begin = segment.begin;
  product.end = segment.end;
  product.cols = stack->a->rows();
  product.terms.push_back(term_of(stack->a, segment.begin, segment.end, x));
  product.finish = [&args, stack](const Block& block) {
    for (const AdapterStack::Block& ranks : stack->blocks) {
      const int64_t first = std::max(ranks.first, block.col);
      const int64_t count = std::min(ranks.first + ranks.count, block.col + block.cols) - first;
      for (int64_t n = block.row; count > 0 && n < block.row + block.rows; ++n) {
        const float* acc = block.at(n) + first - block.col;
        float* h = args.h ? args.h.row(n) + first : nullptr;
        apply_gate(args.routing.row(n)[ranks.gate], acc, stack->scale + first, count, h, args.hg.row(n) + first);
      }
    }
  };
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
      const int64_t align = kernels.dots(*adapter.b, false) ? kDotBlock : 2;
      term.ranges = gates[s].in(adapter.first, adapter.first + rank, align);
      if (!term.ranges.empty()) product.terms.push_back(std::move(term));
    }
    product.start = start_with_bias(module.bias);
    product.finish = finish_into(module.y, args.residual);
    products.push_back(std::move(product));
  }
  multiply(products);
}

}  // namespace at_moe
