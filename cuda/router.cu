// Two-stage grouped router of one layer, forward (contract: backend/ops/router.h).
//   α⁰ = softmax((a + bias) / τ_g), β⁰ = softmax((c + bias) / τ_e) per group; denied entries are 0;
//   α, β = rescale(keep(α⁰, β⁰)), then `set` entries; w_e = α_g β_e; gate_e = λ ρ w_e, gate_E = 1 - λ
// Sequence scope first: the mean of a segment's rows, one block per kPoolColumns columns, kPoolRows rows at a time: the
// partial sums of a column take every kPoolRows'th row in ascending order and are added in order.
// Then one warp per record (cuda/router.cuh). Segments, controls and tables go to the device in one copy.
#include "cuda/router.cuh"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kPoolColumns = 32, kPoolRows = 16;

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

// May experts get weights of 0?
bool is_selective(const RouterOptions& options, const RouterControls& controls) {
  return options.group_top_k > 0 || options.expert_top_k > 0 || options.group_top_p > 0 || options.expert_top_p > 0 ||
         !controls.group_denied.empty() || !controls.expert_denied.empty() || !controls.group_set.empty() ||
         !controls.expert_set.empty();
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

__global__ void __launch_bounds__(kPhaseThreads, 1) route_rows(Route phase) { phase.run(blockIdx.x); }

}  // namespace

void CudaBackend::forward(const RouterForward& args) {
  static const RouterControls none;
  Packer packer(args.segments.size());
  StagedSegment tables{};
  const RouterShape* shape = nullptr;
  const RouterControls* controls = nullptr;
  int64_t records = 0;
  int widest = 1, pooled_columns = 0;
  bool selects = false;
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
    selects |= is_selective(segment.options, *own) || segment.frozen_selection;
    records += own_records;
    if (segment.pooled) pooled_columns = std::max(pooled_columns, shape->groups + shape->experts);
  }
  if (records == 0) return;
  Route phase{nullptr,
              static_cast<int32_t>(args.segments.size()),
              widest,
              records,
              rows_of<float>(args.logits),
              rows_of<float>(args.routing)};
  if (joins(records) && pooled_columns == 0 && phase.shared_bytes() <= kPhaseSharedBytes) {
    commands_.open();
    phase.staged = commands_.put(packer.bytes());
    if (selects) return commands_.add_selecting(PhaseKind::kRoute, phase, args.logits, args.routing);
    return commands_.add(PhaseKind::kRoute, phase, args.logits, args.routing);
  }
  phase.staged = stage(packer.bytes());
  if (pooled_columns > 0) {
    const LaunchShape shape{dim3(static_cast<unsigned>((pooled_columns + kPoolColumns - 1) / kPoolColumns),
                                 static_cast<unsigned>(args.segments.size())),
                            dim3(kPoolColumns, kPoolRows)};
    launch(stream(), shape, pool_rows, phase.staged, args.logits.row(0), args.logits.stride);
  }
  launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads), phase.shared_bytes()}, route_rows,
         phase);
}

}  // namespace at_moe::cuda
