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
using cpu::Product;
using cpu::QuantizedRows;
using cpu::Term;

namespace {

constexpr int kQuantizedSlot = 0;

const CpuWeight* packed(const Weight* weight) { return static_cast<const CpuWeight*>(weight); }

Term base_term(const Weight* weight, int64_t begin, int64_t end, const Matrix& x) {
  Term term;
  term.weight = packed(weight);
  term.begin = begin;
  term.end = end;
  term.a = x;
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

Product shrink(const LinearForward& args, const AdapterSegment& segment, const Matrix& x) {
  const AdapterStack* stack = segment.stack;
  Product product;
  product.begin = segment.begin;
  product.end = segment.end;
  product.cols = stack->a->rows();
  product.terms.push_back(base_term(stack->a, segment.begin, segment.end, x));
  product.finish = [&args, stack](const Block& block) {
    for (int64_t n = block.row; n < block.row + block.rows; ++n) {
      const float* acc = block.at(n);
      const float* routing = args.routing.row(n);
      float* hg = args.hg.row(n) + block.col;
      float* h = args.h ? args.h.row(n) + block.col : nullptr;
      for (int64_t j = 0; j < block.cols; ++j) {
        const float gate = routing[stack->gate_column[block.col + j]];
        hg[j] = gate == 0 ? 0 : acc[j] * gate * stack->scale[block.col + j];
        if (h) h[j] = gate == 0 ? 0 : acc[j];
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
  const auto quantizes = [&](const LinearModule& module) { return integers_ && is_blocks(module.weight->storage()); };
  const bool some = std::any_of(args.modules.begin(), args.modules.end(), quantizes);
  const QuantizedRows quantized = some ? quantize_rows(kQuantizedSlot, args.x) : QuantizedRows();

  if (!segments.empty()) {
    require(args.hg && args.routing, "linear: adapters need hg and routing");
    const Matrix& x = args.shrink_x ? args.shrink_x : args.x;
    std::vector<Product> products;
    products.reserve(segments.size());
    for (const AdapterSegment& segment : segments) products.push_back(shrink(args, segment, x));
    multiply(products);
  }

  std::vector<GateRanges> gates;
  gates.reserve(segments.size());
  for (const AdapterSegment& segment : segments) gates.emplace_back(args.routing, segment);
  std::vector<Product> products;
  for (size_t m = 0; m < args.modules.size(); ++m) {
    const LinearModule& module = args.modules[m];
    Product product;
    product.end = rows;
    product.cols = module.weight->rows();
    product.terms.push_back(base_term(module.weight, 0, rows, args.x));
    if (quantizes(module)) product.terms.back().quantized = quantized;
    for (size_t s = 0; s < segments.size(); ++s) {
      const AdapterStack::Module& adapter = segments[s].stack->modules[m];
      if (!adapter.b) continue;
      const int64_t rank = adapter.b->cols();
      Term term = base_term(adapter.b, segments[s].begin, segments[s].end, args.hg.col_range(adapter.first, rank));
      term.ranges = gates[s].in(adapter.first, adapter.first + rank, 2);
      if (!term.ranges.empty()) product.terms.push_back(std::move(term));
    }
    product.start = start_with_bias(module.bias);
    product.finish = finish_into(module.y, args.residual);
    products.push_back(std::move(product));
  }
  multiply(products);
}

}  // namespace at_moe
