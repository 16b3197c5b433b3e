// One decoder layer over a run of rows, after its routing records are known: products, attention, residuals.
//   q_raw, k_raw, v = z [W_q; W_k; W_v]ᵀ + adapters;  (q_in = norm(q_raw) per head);  q = rope(q_in);  attention
//   mid = in + o(attention);  z2 = norm(mid);  out = mid + down(silu(gate(z2)) ⊙ up(z2))
// Inference lets in, mid and out, z and z2, gate and act be the same memory; training keeps what backward reads.
#pragma once

#include <array>
#include <span>

#include "model/model.h"

namespace at_moe {

// in, mid and out are f32, as the residual stream is, and so are q_raw and q_in, which no product reads. Without a norm
// per head they are the same; where activations are f32, q_in and q are.
struct LayerViews {
  Matrix in, z, q_raw, k_raw, q_in, k_in, q, k, v, attention, lse, mid, z2, gate, up, act, out;
  Matrix records;                           // routing records of the rows
  std::array<Matrix, kLinearGroups> h, hg;  // h empty unless backward follows
};

// Rows of a run that belong to one mixture.
struct MixtureRows {
  int64_t begin = 0, end = 0;
  const Mixture* mixture = nullptr;
};

// Dropout on the adapters' input; `scratch` [rows, widest input] holds the dropped copy. p = 0: none.
struct AdapterDropout {
  float p = 0;
  uint64_t seed = 0;
  uint64_t step = 0;
  int64_t first_row = 0;
  Matrix scratch;

  // The op that makes, or backpropagates through, the masked input of a group.
  Dropout op(int64_t layer, int group, const Matrix& x, const Matrix& y, bool accumulate) const;
};

struct LayerRun {
  int64_t index = 0;
  std::span<const MixtureRows> mixtures;
  KvPool* kv = nullptr;
  int64_t kv_layer = 0;
  RaggedRows layout;
  const AdapterDropout* dropout = nullptr;
};

void layer_forward(const Model& model, const LayerRun& run, const LayerViews& views);

// The adapters of a group of one layer for the rows of a run.
std::vector<AdapterSegment> adapter_segments(std::span<const MixtureRows> mixtures, int64_t layer, int group);

LinearModule linear_module(const Model& model, int64_t layer, int module, const Matrix& y);

}  // namespace at_moe
