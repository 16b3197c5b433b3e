// Two-stage grouped router of one layer, forward (contract: backend/ops/router.h).
//   α⁰ = softmax((a + bias) / τ_g), β⁰ = softmax((c + bias) / τ_e) per group; denied entries are 0;
//   α, β = rescale(keep(α⁰, β⁰)), then `set` entries; w_e = α_g β_e; gate_e = λ ρ w_e, gate_E = 1 - λ
// Sequence scope first: the mean of a segment's rows, one block per kPoolColumns columns, kPoolRows rows at a time: the
// partial sums of a column take every kPoolRows'th row in ascending order and are added in order.
// Then one warp per record: the group stage, and the experts of one group after another.
// Selection takes the largest entry again and again, ties to the lower index, and adds masses in that order as the CPU
// does. Segments, controls and tables go to the device in one copy.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/router_stage.h"

namespace at_moe::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kPoolColumns = 32, kPoolRows = 16;
constexpr int32_t kNone = -1;

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

// Host bytes that are staged together. Tables of one mixture are shared by the segments that follow each other.
class Packer {
 public:
  explicit Packer(size_t segments) : bytes_(segments * sizeof(StagedSegment)) {}

  template <typename T>
  int32_t add(const T* values, size_t count) {
    const size_t at = (bytes_.size() + alignof(T) - 1) / alignof(T) * alignof(T);
    require(at + count * sizeof(T) <= INT32_MAX, "router: too many controls in one call");
    bytes_.resize(at + count * sizeof(T));
    std::memcpy(bytes_.data() + at, values, count * sizeof(T));
    return static_cast<int32_t>(at);
  }
  template <typename T>
  int32_t add(const std::vector<T>& values) {
    return values.empty() ? kNone : add(values.data(), values.size());
  }
  void put(size_t index, const StagedSegment& segment) {
    std::memcpy(bytes_.data() + index * sizeof(StagedSegment), &segment, sizeof(StagedSegment));
  }
  std::span<const char> bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

// The parts of a segment that depend on its shape and controls alone.
void pack_tables(Packer& packer, const RouterShape& shape, const RouterControls& controls, StagedSegment& staged) {
  const std::vector<uint8_t> denied = denied_groups(shape, controls);
  const bool any_denied = std::any_of(denied.begin(), denied.end(), [](uint8_t d) { return d != 0; });
  staged.groups = shape.groups;
  staged.experts = shape.experts;
  staged.group_start = packer.add(shape.group_start);
  staged.group = {packer.add(controls.group_bias), any_denied ? packer.add(denied) : kNone,
                  packer.add(controls.group_set)};
  staged.expert = {packer.add(controls.expert_bias), packer.add(controls.expert_denied),
                   packer.add(controls.expert_set)};
}

StagedSegment stage_segment(const RouterForward::Segment& source, int64_t first, StagedSegment staged) {
  const RouterOptions& options = source.options;
  const RouterLayer& layer = *source.layer;
  staged.begin = source.begin;
  staged.end = source.end;
  staged.out = source.out;
  staged.first = first;
  staged.pooled = source.pooled;
  staged.conditional = options.conditional;
  staged.renormalize = options.renormalize;
  staged.group_top_k = options.group_top_k;
  staged.expert_top_k = options.expert_top_k;
  staged.group_top_p = options.group_top_p;
  staged.expert_top_p = options.expert_top_p;
  staged.group_temperature = options.group_temperature;
  staged.expert_temperature = options.expert_temperature;
  staged.score = layer.score;
  staged.balance = layer.balance;
  staged.log_scale = layer.log_scale;
  staged.balance_constant = layer.balance_constant;
  staged.scale_constant = layer.scale_constant;
  return staged;
}

template <typename T>
__device__ const T* table(const char* staged, int32_t offset, int begin) {
  return offset == kNone ? nullptr : reinterpret_cast<const T*>(staged + offset) + begin;
}

__global__ void __launch_bounds__(kPoolColumns* kPoolRows)
    pool_rows(const char* staged, float* logits, int64_t stride) {
  const StagedSegment& segment = reinterpret_cast<const StagedSegment*>(staged)[blockIdx.y];
  if (!segment.pooled) return;
  const int cols = segment.groups + (segment.conditional ? segment.experts : 0);
  const int column = blockIdx.x * kPoolColumns + threadIdx.x;
  __shared__ float partial[kPoolRows][kPoolColumns];
  float sum = 0;
  for (int64_t n = segment.begin + threadIdx.y; n < segment.end && column < cols; n += kPoolRows) {
    sum += logits[n * stride + column];
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= cols) return;
  double total = 0;
  for (int i = 0; i < kPoolRows; ++i) total += partial[i][threadIdx.x];
  logits[segment.begin * stride + column] =
      static_cast<float>(total / static_cast<double>(segment.end - segment.begin));
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

__device__ void route(const char* staged, const StagedSegment& segment, int64_t index, float* logits, float* record,
                      float* p) {
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

__global__ void __launch_bounds__(32 * kWarps, 1)
    route_rows(const char* staged, int segments, int64_t records, float* logits, int64_t logit_stride, float* routing,
               int64_t routing_stride, int widest) {
  const int warp = threadIdx.x / 32;
  const int64_t record = int64_t{blockIdx.x} * kWarps + warp;
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
  route(staged, segment, index, logits + (segment.begin + index) * logit_stride,
        routing + (segment.out + index) * routing_stride, shared_memory<float>() + warp * widest);
}

}  // namespace

void CudaBackend::forward(const RouterForward& args) {
  static const RouterControls none;
  Packer packer(args.segments.size());
  StagedSegment tables{};
  const RouterShape* shape = nullptr;
  const RouterControls* controls = nullptr;
  int64_t records = 0;
  int widest = 1, pooled_columns = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const RouterForward::Segment& segment = args.segments[i];
    const RouterControls* own = segment.controls ? segment.controls : &none;
    if (segment.pooled && segment.begin >= segment.end) fail(Code::kRouting, "a sequence has no instruction token");
    if (segment.shape != shape || own != controls) {
      pack_tables(packer, *segment.shape, *own, tables);
      shape = segment.shape;
      controls = own;
      widest = std::max(widest, shape->groups);
      for (int32_t g = 0; g < shape->groups; ++g) {
        widest = std::max(widest, shape->group_start[g + 1] - shape->group_start[g]);
      }
    }
    const int64_t own_records = segment.pooled ? 1 : segment.end - segment.begin;
    StagedSegment staged = stage_segment(segment, records, tables);
    staged.frozen = kNone;
    if (segment.frozen_selection) {
      staged.frozen =
          packer.add(segment.frozen_selection, static_cast<size_t>(own_records * (shape->groups + shape->experts)));
    }
    packer.put(i, staged);
    records += own_records;
    if (segment.pooled) pooled_columns = std::max(pooled_columns, shape->groups + shape->experts);
  }
  if (records == 0) return;
  const char* staged = stage(packer.bytes());
  launch(stream(),
         {dim3(static_cast<unsigned>((pooled_columns + kPoolColumns - 1) / kPoolColumns),
               static_cast<unsigned>(args.segments.size())),
          dim3(kPoolColumns, kPoolRows)},
         pool_rows, staged, args.logits.row(0), args.logits.stride);
  launch(stream(),
         {dim3(static_cast<unsigned>((records + kWarps - 1) / kWarps)), dim3(32 * kWarps),
          static_cast<size_t>(kWarps * widest) * sizeof(float)},
         route_rows, staged, static_cast<int>(args.segments.size()), records, args.logits.row(0), args.logits.stride,
         args.routing.row(0), args.routing.stride, widest);
}

}  // namespace at_moe::cuda
