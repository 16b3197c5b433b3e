// Rotary embedding as a phase (cuda/phase.h). An item is a row. The angle is reduced to a fraction of a turn in double,
// where position * inv_freq is exact enough; its cosine and sine are then taken in float, once for all heads, and kept in
// shared memory.
#pragma once

#include "backend/ops/attention.h"
#include "cuda/number.h"
#include "cuda/phase.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

struct Rotation {
  int half;  // of a head
  const double* inv_freq;
  float direction;

  size_t shared_bytes() const { return 2 * static_cast<size_t>(half) * sizeof(float); }
  // table: cos [half], sin [half]
  __device__ void fill(int32_t position, float* table) const {
    constexpr double kTurnsPerRadian = 0.159154943091895335769;
    for (int i = threadIdx.x; i < half; i += kPhaseThreads) {
      const double turns = position * inv_freq[i] * kTurnsPerRadian;
      const float half_turns = static_cast<float>(2 * (turns - rint(turns)));
      sincospif(half_turns, &table[half + i], &table[i]);
    }
    __syncthreads();
  }
  // Calls put(head, i, value) with every element of the rotated heads of x, which are written to y as well.
  template <typename X, typename T, typename Put>
  __device__ void rotate(const X* x, T* y, int heads, const float* table, Put put) const {
    for (int pair = threadIdx.x; pair < heads * half; pair += kPhaseThreads) {
      const int head = pair / half, i = pair % half, low = head * 2 * half + i, high = low + half;
      const float c = table[i], s = direction * table[half + i], a = widen(x[low]), b = widen(x[high]);
      y[low] = narrow<T>(fmaf(a, c, -(b * s)));
      y[high] = narrow<T>(fmaf(b, c, a * s));
      put(head, i, y[low]);
      put(head, i + half, y[high]);
    }
  }
};

// q and k are q_in and k_in rotated, which they may be; then k and v go to their slot of the pool, if there is one.
template <typename X, typename T>
struct Rotate {
  Rotation rotation;
  Rows<const X> q_in, k_in;
  Rows<T> q, k;
  Rows<const T> v;
  int64_t rows;
  int q_heads, kv_heads;
  const int32_t *position, *sequence, *page_table;
  int64_t page_stride;
  T *keys, *values;  // of the layer, or null

  int64_t items() const { return rows; }
  __device__ void run(int64_t row) const {
    float* table = shared_memory<float>();
    const int32_t at_position = position[row];
    rotation.fill(at_position, table);
    rotation.rotate(q_in.row(row), q.row(row), q_heads, table, [](int, int, T) {});
    if (!keys) {
      rotation.rotate(k_in.row(row), k.row(row), kv_heads, table, [](int, int, T) {});
      return;
    }
    const int dim = 2 * rotation.half;
    const int64_t page = page_table[sequence[row] * page_stride + at_position / kPageTokens];
    const int64_t slot = (page * kv_heads * kPageTokens + at_position % kPageTokens) * dim;
    const auto at = [slot, dim](int head, int i) { return slot + int64_t{head} * kPageTokens * dim + i; };
    rotation.rotate(k_in.row(row), k.row(row), kv_heads, table,
                    [&](int head, int i, T value) { keys[at(head, i)] = value; });
    const T* from = v.row(row);
    for (int j = threadIdx.x; j < kv_heads * dim; j += kPhaseThreads) values[at(j / dim, j % dim)] = from[j];
  }
};

}  // namespace at_moe::cuda
