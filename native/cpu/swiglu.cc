// SwiGLU (contract: backend/ops/elementwise.h). σ = 1 / (1 + e^-gate).
//   forward   y = gate σ up
//   backward  dup = dy gate σ;  dgate = dy up σ (1 + gate (1 - σ))
// Split over rows; element-wise, so outputs may be the inputs.
#include "cpu/backend.h"
#include "cpu/lanes.h"

namespace at_moe {

namespace {

constexpr int64_t kRowGrain = 1;

float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace

void CpuBackend::forward(const SwigluForward& args) {
  pool_.run_ranges(args.gate.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float *gate = args.gate.row(n), *up = args.up.row(n);
      float* y = args.y.row(n);
      for (int64_t i = 0; i < args.gate.cols; ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
  });
}

void CpuBackend::backward(const SwigluBackward& args) {
  pool_.run_ranges(args.gate.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float *gate = args.gate.row(n), *up = args.up.row(n), *dy = args.dy.row(n);
      float *dgate = args.dgate.row(n), *dup = args.dup.row(n);
      for (int64_t i = 0; i < args.gate.cols; ++i) {
        const float g = gate[i], s = sigmoid(g), u = up[i], d = dy[i];
        dup[i] = d * (g * s);
        dgate[i] = d * u * (s * (1.0f + g * (1.0f - s)));
      }
    }
  });
}

}  // namespace at_moe
