// The product of a router (backend/ops/router_logits.h) as linear groups of one module: f32 is the CPU's own type.
#include "cpu/backend.h"

namespace at_moe {

void CpuBackend::forward(const RouterLogits& args) {
  for (size_t i = 0; i < args.segments.size();) {
    const auto [begin, first_end, layer] = args.segments[i];
    int64_t end = first_end;
    for (++i; i < args.segments.size() && args.segments[i].layer == layer && args.segments[i].begin == end; ++i) {
      end = args.segments[i].end;
    }
    const LinearModule module{layer->weight, layer->bias, args.logits.row_range(begin, end - begin)};
    LinearForward product;
    product.x = args.x.row_range(begin, end - begin);
    product.modules = std::span(&module, 1);
    forward(product);
  }
}

void CpuBackend::backward(const RouterLogitsBackward& args) {
  const LinearModule module{args.layer->weight, args.layer->bias,
                            args.dlogits.col_range(0, args.layer->weight->rows())};
  const LinearGradients gradient{args.dweight, args.dbias};
  LinearBackward product;
  product.x = args.x;
  product.modules = std::span(&module, 1);
  product.gradients = std::span(&gradient, 1);
  product.dx = args.dx;
  product.accumulate_dx = true;
  backward(product);
}

}  // namespace at_moe
