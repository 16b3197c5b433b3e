// Rotary embedding, half-split form (contract: backend/ops/elementwise.h). c, s = cos, sin of position * inv_freq_i.
//   forward   (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s)  for every head of q and k;
//             then k and v go to their slot: page page_table[sequence][position / 16], token position mod 16
//   backward  the rotation by -angle on dq and dk
// Split over rows; the angles are computed in double, once for all layers of a step (cpu/rope_table.h).
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kv.h"

namespace at_moe {

namespace {

constexpr int64_t kRowGrain = 4;

void rotate(const float* x, float* y, int64_t cols, int64_t half, const float* table, float direction) {
  for (int64_t head = 0; head < cols; head += 2 * half) {
    for (int64_t i = head; i < head + half; ++i) {
      const float c = table[i - head], s = direction * table[half + i - head], a = x[i], b = x[i + half];
      y[i] = a * c - b * s;
      y[i + half] = b * c + a * s;
    }
  }
}

void store(const CpuKvPool& pool, int64_t layer, int64_t page, int64_t token, const float* k, const float* v) {
  const int64_t dim = pool.shape().head_dim;
  for (int64_t head = 0; head < pool.shape().kv_heads; ++head) {
    float* keys = pool.keys(layer, page, head) + token;
    for (int64_t i = 0; i < dim; ++i) keys[i * kPageTokens] = k[head * dim + i];
    std::memcpy(pool.values(layer, page, head) + token * pool.value_stride(), v + head * dim,
                static_cast<size_t>(dim) * sizeof(float));
  }
}

}  // namespace

void CpuBackend::forward(const RopeForward& args) {
  const int64_t half = args.head_dim / 2;
  require(args.head_dim % 2 == 0, "rope: head_dim ", args.head_dim, " is odd");
  const CpuKvPool* pool = static_cast<const CpuKvPool*>(args.kv);
  const RaggedRows& layout = args.layout;
  rope_table_.prepare(layout.rows, {args.inv_freq, static_cast<size_t>(half)});
  pool_.run_ranges(layout.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t position = layout.position[n];
      const float* table = rope_table_.row(n, position);
      rotate(args.q_in.row(n), args.q.row(n), args.q.cols, half, table, 1);
      rotate(args.k_in.row(n), args.k.row(n), args.k.cols, half, table, 1);
      if (!pool) continue;
      const int64_t page = layout.page_table[layout.sequence[n] * layout.page_stride + position / kPageTokens];
      store(*pool, args.layer, page, position % kPageTokens, args.k.row(n), args.v.row(n));
    }
  });
}

void CpuBackend::backward(const RopeBackward& args) {
  const int64_t half = args.head_dim / 2;
  rope_table_.prepare(args.dq.rows, {args.inv_freq, static_cast<size_t>(half)});
  pool_.run_ranges(args.dq.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* table = rope_table_.row(n, args.position[n]);
      rotate(args.dq.row(n), args.dq.row(n), args.dq.cols, half, table, -1);
      rotate(args.dk.row(n), args.dk.row(n), args.dk.cols, half, table, -1);
    }
  });
}

}  // namespace at_moe
