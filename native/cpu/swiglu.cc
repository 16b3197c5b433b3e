// SwiGLU (contract: backend/ops/elementwise.h), split over rows. σ = 1 / (1 + e^-gate).
//   forward   y = gate σ up
//   backward  dup = dy gate σ;  dgate = dy up σ (1 + gate (1 - σ))
#include "cpu/backend.h"
#include "cpu/kernels.h"

namespace at_moe {

void CpuBackend::forward(const SwigluForward& args) {
  pool_.run_ranges(args.gate.rows, 1, [&](int64_t n, int64_t, int) {
    kernels_.swiglu(args.gate.row(n), args.up.row(n), args.y.row(n), args.gate.cols);
  });
}

void CpuBackend::backward(const SwigluBackward& args) {
  pool_.run_ranges(args.gate.rows, 1, [&](int64_t n, int64_t, int) {
    kernels_.swiglu_backward(args.gate.row(n), args.up.row(n), args.dy.row(n), args.dgate.row(n), args.dup.row(n),
                             args.gate.cols);
  });
}

}  // namespace at_moe
