#include "cpu/router_stage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace at_moe {

namespace {

// keep[i]: among the top_k largest, and the mass before it, in descending order, is below top_p. Ties: lower index.
void select(const Stage& stage, const float* p, std::vector<int32_t>& order, uint8_t* keep) {
  order.resize(static_cast<size_t>(stage.n));
  for (int32_t i = 0; i < stage.n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [p](int32_t a, int32_t b) { return p[a] > p[b]; });
  const int32_t limit = stage.top_k > 0 ? std::min(stage.top_k, stage.n) : stage.n;
  const float mass = stage.top_p > 0 && stage.top_p < 1 ? stage.top_p : std::numeric_limits<float>::infinity();
  std::fill(keep, keep + stage.n, uint8_t{0});
  float before = 0;
  for (int32_t i = 0; i < limit && before < mass; ++i) {
    keep[order[i]] = 1;
    before += p[order[i]];
  }
}

void apply_set(const Stage& stage, float* q) {
  float set = 0, others = 0;
  for (int32_t i = 0; i < stage.n; ++i) {
    if (std::isnan(stage.set[i])) others += q[i];
    else set += stage.set[i];
  }
  const float share = others > 0 ? std::max(0.0f, 1 - set) / others : 0;
  const float factor = others > 0 || set == 0 ? 1 : 1 / set;
  for (int32_t i = 0; i < stage.n; ++i) q[i] = std::isnan(stage.set[i]) ? q[i] * share : stage.set[i] * factor;
}

}  // namespace

void softmax(const Stage& stage, const float* score, float* p) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t i = 0; i < stage.n; ++i) {
    const bool denied = stage.denied && stage.denied[i];
    p[i] = denied ? -std::numeric_limits<float>::infinity()
                  : (score[i] + (stage.bias ? stage.bias[i] : 0)) / stage.temperature;
    largest = std::max(largest, p[i]);
  }
  float total = 0;
  for (int32_t i = 0; i < stage.n; ++i) {
    p[i] = std::isinf(p[i]) && p[i] < 0 ? 0 : std::exp(p[i] - largest);
    total += p[i];
  }
  if (total == 0) return;  // all denied
  for (int32_t i = 0; i < stage.n; ++i) p[i] /= total;
}

void finish(const Stage& stage, const float* p, const uint8_t* frozen, float* q) {
  thread_local std::vector<int32_t> order;
  thread_local std::vector<uint8_t> kept;
  std::copy(p, p + stage.n, q);
  if (frozen || stage.selects()) {
    kept.resize(static_cast<size_t>(stage.n));
    if (!frozen) select(stage, p, order, kept.data());
    const uint8_t* keep = frozen ? frozen : kept.data();
    float total = 0;
    for (int32_t i = 0; i < stage.n; ++i) total += keep[i] ? p[i] : 0;
    const float factor = stage.renormalize && total > 0 ? 1 / total : 1;
    for (int32_t i = 0; i < stage.n; ++i) q[i] = keep[i] ? p[i] * factor : 0;
  }
  if (stage.set) apply_set(stage, q);
}

}  // namespace at_moe
