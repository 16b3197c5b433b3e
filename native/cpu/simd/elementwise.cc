// Loops of cpu/lanes.h over one row, compiled for this set: the same bits as in every other.
#include "cpu/kernels.h"
#include "cpu/lanes.h"

namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// f(first, count) for runs of at most kLanes: outputs may be inputs, so a run is computed before it is stored.
template <typename Function>
void for_runs(int64_t n, Function&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

}  // namespace

void swiglu(const float* gate, const float* up, float* y, int64_t n) {
  for_runs(n, [=](int64_t first, int64_t count) {
    float run[kLanes];
    for (int64_t l = 0; l < count; ++l) run[l] = gate[first + l] * sigmoid(gate[first + l]) * up[first + l];
    for (int64_t l = 0; l < count; ++l) y[first + l] = run[l];
  });
}

void swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n) {
  for_runs(n, [=](int64_t first, int64_t count) {
    float of_gate[kLanes], of_up[kLanes];
    for (int64_t l = 0; l < count; ++l) {
      const float g = gate[first + l], s = sigmoid(g), u = up[first + l], d = dy[first + l];
      of_up[l] = d * (g * s);
      of_gate[l] = d * u * (s * (1.0f + g * (1.0f - s)));
    }
    for (int64_t l = 0; l < count; ++l) {
      dup[first + l] = of_up[l];
      dgate[first + l] = of_gate[l];
    }
  });
}

double exp_sum(const float* l, int64_t n, float largest) {
  return sum_lanes(n, [=](int64_t i) { return fast_exp(l[i] - largest); });
}

void exp_scaled(float* l, int64_t n, float largest, float log_sum, float weight) {
  for (int64_t i = 0; i < n; ++i) l[i] = weight * fast_exp((l[i] - largest) - log_sum);
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
