// Row-wise ops around the products. N rows; statistics in f32. Matrices are of the backend's activation type where
// nothing else is said; the residual stream is f32 whatever that type is, and so is its gradient, so that little but what
// a product reads is rounded to 16 bits.
#pragma once

#include <cstdint>

#include "backend/ops/attention.h"
#include "backend/ops/linear.h"
#include "core/matrix.h"

namespace at_moe {

// y_n = table[ids_n]
struct EmbeddingForward {
  const void* table = nullptr;  // [V, d], dtype as loaded, row-major
  DType dtype = DType::f32;
  const int32_t* ids = nullptr;  // [N] device
  Matrix y;                      // [N, d] f32
};

// dtable[ids_n] += dy_n, rows in ascending order
struct EmbeddingBackward {
  const int32_t* ids = nullptr;
  Matrix dy;      // [N, d] f32
  Matrix dtable;  // [V, d] f32
};

// y = x / sqrt(mean(x²) + eps) ⊙ gamma over groups of `dim` columns (dim = cols: the row; head_dim: per head)
struct RmsNormForward {
  Matrix x, y;                   // x f32 or of y's type; of one type, they may be the same memory
  const float* gamma = nullptr;  // [dim]
  int64_t dim = 0;
  float eps = 0;
};

// dx (+)= r (gamma ⊙ dy - x r² mean(x ⊙ gamma ⊙ dy)), r = 1/sqrt(mean(x²)+eps);  dgamma += Σ_n dy ⊙ x r
struct RmsNormBackward {
  Matrix x, dy, dx;  // x: input of the forward, f32 or of dy's type; dx of dy's type, may be dy
  bool accumulate = false;
  const float* gamma = nullptr;
  float* dgamma = nullptr;  // [dim] or null
  int64_t dim = 0;
  float eps = 0;
};

// Rotary embedding in the half-split form of Hugging Face, angle = position * inv_freq (in double), of q_in and k_in;
// then k and v are written to the row's slot of the pool (skipped when kv is null).
struct RopeForward {
  Matrix q_in, k_in;                 // as q and k; f32 or of their type, in which they may be q and k themselves
  Matrix q, k, v;                    // [N, H*D], [N, Hk*D], [N, Hk*D]; q and k written
  const double* inv_freq = nullptr;  // [D/2] host and device alike on CPU; device elsewhere
  int64_t head_dim = 0;
  KvPool* kv = nullptr;
  int64_t layer = 0;
  RaggedRows layout;
};

// The inverse rotation on dq and dk in place.
struct RopeBackward {
  Matrix dq, dk;
  const double* inv_freq = nullptr;
  int64_t head_dim = 0;
  const int32_t* position = nullptr;  // [N] device
};

// y = silu(gate) ⊙ up
struct SwigluForward {
  Matrix gate, up, y;
};

struct SwigluBackward {
  Matrix gate, up, dy;
  Matrix dgate, dup;  // written; may be gate and up themselves
};

// y = x ⊙ mask / (1 - p); element i = (first_row + n) * cols + j is kept when
// uniform(philox(seed, stream, i / 4)[i mod 4]) >= p: recomputed, never stored. Backward is the same op on dy.
struct Dropout {
  Matrix x, y;              // x f32 or of y's type
  bool accumulate = false;  // y += instead of =
  float p = 0;
  uint64_t seed = 0, stream = 0;  // stream: (step, layer, input)
  int64_t first_row = 0;          // row index of x.row(0) in the micro-batch
};

}  // namespace at_moe
