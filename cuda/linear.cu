// Forward of a linear group, and router logits (contracts: backend/ops/linear.h, backend/ops/router.h). N rows, d_in
// inputs, S stacked ranks; one launch of products (cuda/product.h), their elements each one chain over k:
//   early     h = A_cat x, hg = h ⊙ gate ⊙ scale          [N, S]    per segment, all modules and experts stacked
//   products  y_m = bias + W_m x + B_m hg + residual       [N, d_m]  terms: W over all rows, then B per segment
// Early tiles are taken first; a tile of y waits for them when it comes to its first B.
#include "cuda/backend.h"

#include "backend/segments.h"
#include "core/status.h"
#include "cuda/product.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

namespace {

Product shrink(const LinearForward& args, const AdapterSegment& segment) {
  const AdapterStack& stack = *segment.stack;
  Product product;
  product.begin = segment.begin;
  product.end = segment.end;
  product.cols = stack.a->rows();
  product.terms.push_back(
      {args.shrink_x ? args.shrink_x : args.x, matrix_of(*stack.a), segment.begin, segment.end});
  product.out = args.hg;
  product.raw = args.h;
  product.routing = args.routing;
  product.gate_column = stack.gate_column;
  product.scale = stack.scale;
  return product;
}

}  // namespace

void CudaBackend::forward(const LinearForward& args) {
  const int64_t rows = args.x.rows;
  const std::vector<AdapterSegment> segments = merge_segments(args.segments, rows);
  require(segments.empty() || (args.hg && args.routing), "linear: adapters need hg and routing");
  std::vector<Product> shrinks, products;
  for (const AdapterSegment& segment : segments) shrinks.push_back(shrink(args, segment));
  for (size_t m = 0; m < args.modules.size(); ++m) {
    const LinearModule& module = args.modules[m];
    Product product;
    product.end = rows;
    product.cols = module.weight->rows();
    product.terms.push_back({args.x, matrix_of(*module.weight), 0, rows});
    for (const AdapterSegment& segment : segments) {
      const AdapterStack::Module& adapter = segment.stack->modules[m];
      if (!adapter.b) continue;
      product.terms.push_back({args.hg.col_range(adapter.first, adapter.b->cols()), matrix_of(*adapter.b),
                               segment.begin, segment.end, true});
    }
    product.bias = module.bias;
    product.out = module.y;
    product.add = args.residual;
    products.push_back(std::move(product));
  }
  multiply(Form::kNT, activation_, shrinks, products);
}

void CudaBackend::forward(const RouterLogits& args) {
  std::vector<Product> products;
  const RouterLayer* last = nullptr;
  for (const RouterLogits::Segment& segment : args.segments) {
    if (segment.begin >= segment.end) continue;
    if (segment.layer == last && products.back().end == segment.begin) {
      products.back().end = products.back().terms.front().end = segment.end;
      continue;
    }
    last = segment.layer;
    const Weight& weight = *last->weight;
    Product product;
    product.begin = segment.begin;
    product.end = segment.end;
    product.cols = weight.rows();
    product.terms.push_back({args.x, matrix_of(weight), segment.begin, segment.end});
    product.bias = last->bias;
    product.out = args.logits;
    products.push_back(std::move(product));
  }
  multiply(Form::kNT, activation_, {}, products);
}

}  // namespace at_moe::cuda
