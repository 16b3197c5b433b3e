// The grouped router as a phase (cuda/phase.h): one warp per record, first the group stage, then the experts of one group
// after another. Selection takes the largest entry again and again, ties to the lower index, and adds masses in that
// order as the CPU does.
#pragma once

#include <bit>

#include "cuda/phase.h"
#include "cuda/piece.h"
#include "cuda/router_stage.h"

namespace at_moe::cuda {

inline constexpr int32_t kNone = -1;

// Offsets into the staged bytes, or kNone.
struct StagedControls {
  int32_t bias = kNone, denied = kNone, set = kNone;
};

struct StagedSegment {
  int64_t begin, end, out;
  int64_t first;  // record of the call
  int32_t pooled, conditional, renormalize;
  int32_t groups, experts, group_start;
  int32_t group_top_k, expert_top_k;
  float group_top_p, expert_top_p, group_temperature, expert_temperature;
  StagedControls group, expert;
  int32_t frozen;
  const float *score, *balance, *log_scale;
  float balance_constant, scale_constant;
};

template <typename T>
__device__ const T* table(const char* staged, int32_t offset, int begin) {
  return offset == kNone ? nullptr : reinterpret_cast<const T*>(staged + offset) + begin;
}

// One stage of one record. Entries are read and written by the lane that has them; p is the warp's shared memory.
struct Stage {
  int n;
  float temperature, top_p;
  int top_k;
  bool renormalize;
  const float* bias;
  const uint8_t *denied, *frozen;
  const float* set;
  float* p;

  __device__ bool selects() const { return (top_k > 0 && top_k < n) || (top_p > 0 && top_p < 1); }

  // p and `out` = the softmax of the scores after bias, denial and temperature; all 0 when every entry is denied.
  __device__ void softmax(const float* score, float* out) const {
    const float largest = stage_max(n, [&](int i) {
      const float shifted = (score[i] + (bias ? bias[i] : 0)) / temperature;
      return p[i] = denied && denied[i] ? -INFINITY : shifted;
    });
    const float total = stage_sum(n, [&](int i) { return p[i] = p[i] == -INFINITY ? 0 : expf(p[i] - largest); });
    for (int i = threadIdx.x % 32; i < n; i += 32) out[i] = p[i] = total == 0 ? 0 : p[i] / total;
  }

  // Entries in descending order: larger values, then lower indices, have larger keys.
  __device__ unsigned long long key(int i) const {
    return static_cast<unsigned long long>(std::bit_cast<unsigned>(p[i])) << 32 | (~0u - static_cast<unsigned>(i));
  }

  // The key of the last entry that is kept.
  __device__ unsigned long long select() const {
    const int limit = top_k > 0 && top_k < n ? top_k : n;
    const float mass = top_p > 0 && top_p < 1 ? top_p : INFINITY;
    unsigned long long last = ~0ull;
    float before = 0;
    for (int rank = 0; rank < limit && before < mass; ++rank) {
      unsigned long long best = 0;
      for (int i = threadIdx.x % 32; i < n; i += 32) {
        const unsigned long long own = key(i);
        if (own < last && own > best) best = own;
      }
      for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(~0u, best, step);
        best = other > best ? other : best;
      }
      last = best;
      before += std::bit_cast<float>(static_cast<unsigned>(best >> 32));
    }
    return last;
  }

  // p becomes the final weights of the stage.
  __device__ void finish() const {
    if (frozen || selects()) {
      const unsigned long long last = frozen ? 0 : select();
      const auto kept = [&](int i) { return frozen ? frozen[i] != 0 : key(i) >= last; };
      const float total = stage_sum(n, [&](int i) { return p[i] = kept(i) ? p[i] : 0; });
      const float factor = renormalize && total > 0 ? 1 / total : 1;
      for (int i = threadIdx.x % 32; i < n; i += 32) p[i] *= factor;
    }
    if (!set) return;
    const auto is_set = [&](int i) { return set[i] == set[i]; };
    const float total = stage_sum(n, [&](int i) { return is_set(i) ? set[i] : 0; });
    const float others = stage_sum(n, [&](int i) { return is_set(i) ? 0 : p[i]; });
    const float share = others > 0 ? fmaxf(0, 1 - total) / others : 0;
    const float factor = others > 0 || total == 0 ? 1 : 1 / total;
    for (int i = threadIdx.x % 32; i < n; i += 32) p[i] = is_set(i) ? set[i] * factor : p[i] * share;
  }
};

__device__ inline void route(const char* staged, const StagedSegment& segment, int64_t index, float* logits,
                             float* record, float* p) {
  const int groups = segment.groups, experts = segment.experts, lane = threadIdx.x % 32;
  float* alpha0 = record;
  float* beta0 = alpha0 + groups;
  float* alpha = beta0 + experts;
  float* weight = alpha + groups;
  float* gate = weight + experts;
  const int32_t* start = table<int32_t>(staged, segment.group_start, 0);
  const uint8_t* frozen = table<uint8_t>(staged, segment.frozen, 0);
  if (frozen) frozen += index * (groups + experts);
  const float lambda = segment.balance ? 1 / (1 + expf(-*segment.balance)) : segment.balance_constant;
  const float rho = segment.log_scale ? expf(*segment.log_scale) : segment.scale_constant;

  const Stage group{groups,
                    segment.group_temperature,
                    segment.group_top_p,
                    segment.group_top_k,
                    segment.renormalize != 0,
                    table<float>(staged, segment.group.bias, 0),
                    table<uint8_t>(staged, segment.group.denied, 0),
                    frozen,
                    table<float>(staged, segment.group.set, 0),
                    p};
  group.softmax(logits, alpha0);
  group.finish();
  for (int g = lane; g < groups; g += 32) alpha[g] = p[g];
  __syncwarp();
  for (int g = 0; g < groups; ++g) {
    const int begin = start[g], n = start[g + 1] - begin;
    float* score = logits + groups + begin;
    if (!segment.conditional) {
      for (int e = lane; e < n; e += 32) score[e] = alpha0[g] * segment.score[begin + e];
    }
    const Stage expert{n,
                       segment.expert_temperature,
                       segment.expert_top_p,
                       segment.expert_top_k,
                       segment.renormalize != 0,
                       table<float>(staged, segment.expert.bias, begin),
                       table<uint8_t>(staged, segment.expert.denied, begin),
                       frozen ? frozen + groups + begin : nullptr,
                       table<float>(staged, segment.expert.set, begin),
                       p};
    expert.softmax(score, beta0 + begin);
    expert.finish();
    for (int e = lane; e < n; e += 32) {
      weight[begin + e] = p[e] * alpha[g];
      gate[begin + e] = lambda * rho * weight[begin + e];
    }
  }
  if (lane == 0) gate[experts] = 1 - lambda;
}

struct Route {
  static constexpr int kWarps = kPhaseThreads / 32;

  const char* staged;  // StagedSegment[segments], then their tables
  int32_t segments, widest;
  int64_t records;
  Rows<float> logits, routing;

  size_t shared_bytes() const { return static_cast<size_t>(kWarps * widest) * sizeof(float); }
  int64_t items() const { return (records + kWarps - 1) / kWarps; }
  __device__ void run(int64_t item) const {
    const int warp = threadIdx.x / 32;
    const int64_t record = item * kWarps + warp;
    if (record >= records) return;
    const auto* all = reinterpret_cast<const StagedSegment*>(staged);
    int low = 0, high = segments;  // the last segment whose first record is not behind this one
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (all[middle].first <= record) low = middle;
      else high = middle;
    }
    const StagedSegment& segment = all[low];
    const int64_t index = record - segment.first;
    route(staged, segment, index, logits.row(segment.begin + index), routing.row(segment.out + index),
          shared_memory<float>() + warp * widest);
  }
};

}  // namespace at_moe::cuda
