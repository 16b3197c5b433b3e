// Causal attention over paged keys and values, ragged rows, grouped queries (H query heads share Hk key heads).
//   s_j = q·k_j / sqrt(D) for keys j in (p - window, p], p the row's position;  out = Σ softmax(s)_j v_j
// Keys are taken in fixed runs of kKeyRun by absolute position; each run is reduced alone (max, sum, weighted values) and
// the runs are combined in index order, so that a row's bits do not depend on how a prompt was cut.
//   lse = log Σ exp(s_j)   [N, H], kept for backward
// Backward over contiguous rows (sequences start at position 0): with P = exp(s - lse), δ = rowsum(dout ⊙ out)
//   dv_j = Σ_i P_ij dout_i;  ds_ij = P_ij (dout_i·v_j - δ_i);  dq_i = Σ_j ds_ij k_j / sqrt(D);  dk_j = Σ_i ds_ij q_i / sqrt(D)
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/matrix.h"

namespace at_moe {

inline constexpr int64_t kPageTokens = 16;
inline constexpr int64_t kKeyRun = 256;

// Pages of keys and values of all layers, in a layout of the backend's own.
class KvPool {
 public:
  struct Shape {
    int64_t layers = 0, pages = 0, kv_heads = 0, head_dim = 0;
  };
  explicit KvPool(const Shape& shape) : shape_(shape) {}
  virtual ~KvPool() = default;
  const Shape& shape() const { return shape_; }

  // Where a page lies in device memory: as many parts, of the same sizes, for every page.
  struct Part {
    void* data;
    size_t bytes;
  };
  virtual std::vector<Part> parts(int64_t page) const = 0;

 private:
  Shape shape_;
};

// The rows of a step: B sequences, rows of a sequence adjacent and in ascending position. Device arrays.
struct RaggedRows {
  int64_t rows = 0, sequences = 0;
  const int32_t* position = nullptr;    // [N]
  const int32_t* sequence = nullptr;    // [N] index into page_table
  const int32_t* page_table = nullptr;  // [B, page_stride] page ids
  int64_t page_stride = 0;

  RaggedRows row_range(int64_t begin, int64_t count) const {
    RaggedRows part = *this;
    part.rows = count;
    part.position += begin;
    part.sequence += begin;
    return part;
  }
};

struct AttentionForward {
  Matrix q;    // [N, H*D]
  Matrix out;  // [N, H*D]
  Matrix lse;  // [N, H] f32, or empty
  const KvPool* kv = nullptr;
  int64_t layer = 0;
  int64_t heads = 0;
  int64_t window = 0;  // 0 = all keys
  RaggedRows layout;
};

struct AttentionBackward {
  Matrix q, k, v;  // after rope; [N, H*D], [N, Hk*D], [N, Hk*D]
  Matrix out, dout, lse;
  Matrix dq, dk, dv;  // written
  int64_t heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  int64_t begin = 0, end = 0;  // rows of one sequence
};

}  // namespace at_moe
