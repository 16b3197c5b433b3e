// Backward of a linear group (backend/ops/linear.h) in four jobs: u = g B into dh; the gates of dh and their gradient;
// dx over all modules and A, outputs and ranks ascending on one accumulator; and the weight gradients.
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
using cpu::GradientProduct;
using cpu::kDotBlock;
using cpu::Operand;
using cpu::Product;
using cpu::ProductKernels;
using cpu::Term;

namespace {

Term transposed_term(const Weight* weight, int64_t begin, int64_t end, const Operand& g) {
  Term term;
  term.weight = static_cast<const CpuWeight*>(weight);
  term.transposed = true;
  term.begin = begin;
  term.end = end;
  term.a = g;
  term.ranges.push_back({0, weight->rows()});
  return term;
}

std::function<void(const Block&)> finish_into(const Matrix& out) {
  return [out](const Block& block) {
    for (int64_t n = block.row; n < block.row + block.rows; ++n) {
      std::memcpy(out.row(n) + block.col, block.at(n), sizeof(float) * static_cast<size_t>(block.cols));
    }
  };
}

// dh: dhg -> dhg ⊙ gate ⊙ scale, and the gates' own gradient, of one row.
void apply_gates(const LinearBackward& args, const AdapterStack& stack, int64_t row) {
  const int64_t columns = stack.a->rows();
  const float* routing = args.routing.row(row);
  const float* h = args.h ? args.h.row(row) : nullptr;
  float* dh = args.dh.row(row);
  for (int64_t j = 0; j < columns;) {
    const int32_t gate = stack.gate_column[j];
    float slope = 0;
    for (; routing[gate] == 0 && j < columns && stack.gate_column[j] == gate; ++j) dh[j] = 0;
    for (; j < columns && stack.gate_column[j] == gate; ++j) {
      const float scaled = dh[j] * stack.scale[j];
      if (h) slope += scaled * h[j];
      dh[j] = scaled * routing[gate];
    }
    if (args.drouting) args.drouting.row(row)[gate] += slope;
  }
}

// bias += Σ_n g[n] in runs, one group of columns.
void add_bias_gradient(const Matrix& g, float* bias, int64_t first, int64_t last) {
  for (int64_t run = 0; run < g.rows; run += kGradientRun) {
    const int64_t end = std::min(run + kGradientRun, g.rows);
    for (int64_t col = first; col < last; col += kPanel) {
      const int64_t count = std::min(kPanel, last - col);
      float sum[kPanel] = {};
      for (int64_t n = run; n < end; ++n) {
        const float* values = g.row(n) + col;
        for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
      }
      for (int64_t i = 0; i < count; ++i) bias[col + i] += sum[i];
    }
  }
}

}  // namespace

void CpuBackend::backward(const LinearBackward& args) {
  const int64_t rows = args.x ? args.x.rows : args.modules.front().y.rows;
  if (rows == 0) return;
  check_gradients(args);
  const std::vector<AdapterSegment> segments = merge_segments(args.segments, rows);
  const ProductKernels kernels = product_kernels();
  std::vector<Operand> gradients;  // of the modules' outputs
  for (size_t m = 0; m < args.modules.size(); ++m) {
    Forms forms;
    if (args.dx) kernels.add_form(*args.modules[m].weight, true, &forms);
    for (const AdapterSegment& segment : segments) {
      if (const Weight* b = segment.stack->modules[m].b) kernels.add_form(*b, true, &forms);
    }
    gradients.push_back(operand(static_cast<int>(m), args.modules[m].y, forms));
  }

  if (!segments.empty()) {
    require(args.dh && args.routing, "linear backward: adapters need dh and routing");
    require(!args.drouting || args.h, "linear backward: router gradients need h");
    std::vector<Product> products;
    for (const AdapterSegment& segment : segments) {
      for (size_t m = 0; m < args.modules.size(); ++m) {
        const AdapterStack::Module& adapter = segment.stack->modules[m];
        if (!adapter.b) continue;
        Product product;
        product.begin = segment.begin;
        product.end = segment.end;
        product.cols = adapter.b->cols();
        product.terms.push_back(transposed_term(adapter.b, segment.begin, segment.end, gradients[m]));
        product.finish = finish_into(args.dh.col_range(adapter.first, product.cols));
        product.panel_rows = panel_rows(args.routing, *segment.stack, adapter.first, adapter.first + product.cols);
        products.push_back(std::move(product));
      }
    }
    multiply(products);
    for (const AdapterSegment& segment : segments) {
      pool_.run_ranges(segment.end - segment.begin, 16, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; ++n) apply_gates(args, *segment.stack, segment.begin + n);
      });
    }
  }

  Product input, shrink_input;
  for (size_t m = 0; m < args.modules.size(); ++m) {
    input.terms.push_back(transposed_term(args.modules[m].weight, 0, rows, gradients[m]));
  }
  for (const AdapterSegment& segment : segments) {
    Product& target = args.shrink_dx ? shrink_input : input;
    const int64_t ranks = segment.stack->a->rows();
    Operand dh;
    dh.rows = args.dh.col_range(0, ranks);
    Term term = transposed_term(segment.stack->a, segment.begin, segment.end, dh);
    const int64_t align = kernels.dots(*segment.stack->a, true) ? kDotBlock : kPanel;
    term.ranges = GateRanges(args.routing, segment).in(0, ranks, align);
    target.terms.push_back(std::move(term));
  }
  std::vector<Product> products;
  if (args.dx) {
    input.end = rows;
    input.cols = args.dx.cols;
    if (args.accumulate_dx) {
      input.start = [&args](const Block& block) {
        for (int64_t n = block.row; n < block.row + block.rows; ++n) {
          std::memcpy(block.at(n), args.dx.row(n) + block.col, sizeof(float) * static_cast<size_t>(block.cols));
        }
      };
    }
    input.finish = finish_into(args.dx);
    products.push_back(std::move(input));
  }
  if (args.shrink_dx) {
    shrink_input.end = rows;
    shrink_input.cols = args.shrink_dx.cols;
    shrink_input.finish = finish_into(args.shrink_dx);
    products.push_back(std::move(shrink_input));
  }
  if (!products.empty()) multiply(products);

  add_gradients(args);
}

void CpuBackend::add_gradients(const LinearBackward& args) {
  std::vector<GradientProduct> products;
  for (size_t m = 0; m < args.gradients.size(); ++m) {
    const Matrix& g = args.modules[m].y;
    if (float* weight = args.gradients[m].weight) {
      products.push_back({g, args.x, 0, g.rows, weight, args.x.cols});
    }
    if (float* bias = args.gradients[m].bias) {
      pool_.run_ranges(g.cols, 4 * kPanel,
                       [&](int64_t begin, int64_t end, int) { add_bias_gradient(g, bias, begin, end); });
    }
  }
  for (size_t s = 0; s < args.adapter_gradients.size(); ++s) {
    const AdapterSegment& segment = args.segments[s];
    const AdapterGradients& gradients = args.adapter_gradients[s];
    if (segment.begin >= segment.end || !segment.stack || !segment.stack->a) continue;
    if (gradients.a) {
      const Matrix& x = args.shrink_x ? args.shrink_x : args.x;
      const Matrix dh = args.dh.col_range(0, segment.stack->a->rows());
      products.push_back({dh, x, segment.begin, segment.end, gradients.a, x.cols});
    }
    for (size_t m = 0; m < gradients.b.size(); ++m) {
      const AdapterStack::Module& adapter = segment.stack->modules[m];
      if (!gradients.b[m] || !adapter.b) continue;
      const int64_t rank = adapter.b->cols();
      const Matrix hg = args.hg.col_range(adapter.first, rank);
      products.push_back({args.modules[m].y, hg, segment.begin, segment.end, gradients.b[m], rank});
    }
  }
  // Products that add to the same gradient must follow each other.
  while (!products.empty()) {
    std::vector<GradientProduct> now, later;
    for (const GradientProduct& product : products) {
      const bool taken =
          std::any_of(now.begin(), now.end(), [&](const GradientProduct& other) { return other.grad == product.grad; });
      (taken ? later : now).push_back(product);
    }
    accumulate(now);
    products = std::move(later);
  }
}

}  // namespace at_moe
