// Launches of attention over the paged pool (contract: backend/ops/attention.h; kernel: cuda/attention_forward.cuh). The
// shape of the step chooses the tile: few queries of a key head share one with the keys split among warps, many are a
// tile of rows. Steps too small to fill the device split the runs of keys among blocks too, and blend them afterwards.
#include <algorithm>

#include "cuda/attention_forward.cuh"
#include "cuda/kv.h"

namespace at_moe::cuda {

namespace {

constexpr int kPartialSlot = 0, kStateSlot = 1;
constexpr int64_t kPartialBytes = int64_t{64} << 20;  // at most, for the results of runs

template <typename T>
__global__ void __launch_bounds__(kPhaseThreads) combine_runs(CombineRuns<T> phase) {
  phase.run(blockIdx.x);
}

template <class Tile>
void set_tile(ForwardArguments<typename Tile::T>& args, int row_count) {
  args.tile_heads = std::min(args.heads / args.kv_heads, Tile::kRows);
  args.tile_rows = row_count == 1 ? 1 : Tile::kRows / args.tile_heads;
}

}  // namespace

void CudaBackend::forward(const AttentionForward& args) {
  const auto& pool = static_cast<const CudaKvPool&>(*args.kv);
  const RaggedRows& layout = args.layout;
  const int64_t kv_heads = pool.shape().kv_heads, group = args.heads / kv_heads, dim = pool.shape().head_dim;
  require(group > 0 && args.heads % kv_heads == 0, "attention: ", args.heads, " heads over ", kv_heads, " key heads");
  if (layout.rows == 0) return;

  const auto start = [&](auto tile_type, auto& to, int64_t sequence_rows) {
    using Tile = decltype(tile_type);
    using T = typename Tile::T;
    set_tile<Tile>(to, static_cast<int>(sequence_rows));
    const int64_t rows = row_bucket(layout.rows);
    int64_t row_tiles = (rows + to.tile_rows - 1) / to.tile_rows;
    if (to.tile_rows > 1) row_tiles += layout.sequences;
    const int64_t head_tiles = kv_heads * ((group + to.tile_heads - 1) / to.tile_heads);
    const int64_t blocks = row_tiles * head_tiles, multiprocessors = runtime_->limits().multiprocessors;
    const int64_t states = rows * args.heads * to.runs;
    int64_t splits = 1;
    if (blocks < 2 * multiprocessors && states * (dim + 2) * static_cast<int64_t>(sizeof(float)) <= kPartialBytes) {
      splits = std::min<int64_t>(to.runs, (4 * multiprocessors + blocks - 1) / blocks);
    }
    if (splits > 1) {
      to.partial = scratch(kPartialSlot, states * dim);
      to.states = scratch<SoftmaxState>(kStateSlot, states);
    }
    const LaunchShape shape{
        dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>(head_tiles), static_cast<unsigned>(splits)),
        dim3(Tile::kThreads), ForwardShared<Tile>::kBytes};
    commands_.make_room();
    commands_.launch(attend<Tile>, shape, to);
    if (splits == 1) return;
    const CombineRuns<T> phase{rows_of<T>(args.out),
                               rows_of<float>(args.lse),
                               to.position,
                               layout.rows,
                               args.heads,
                               to.runs,
                               to.dim,
                               to.window,
                               to.partial,
                               to.states};
    if (joins(layout.rows)) return commands_.add(PhaseKind::kCombine, phase, args.out);
    launch(stream(), {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads)}, combine_runs<T>, phase);
  };

  dispatch(args.q.dtype, [&](auto element) {
    using T = decltype(element);
    ForwardArguments<T> to{};
    to.q = args.q.row<T>(0);
    to.out = args.out.row<T>(0);
    to.lse = args.lse.row(0);
    to.q_stride = args.q.stride;
    to.out_stride = args.out.stride;
    to.lse_stride = args.lse.stride;
    to.keys = static_cast<const T*>(pool.keys(args.layer));
    to.values = static_cast<const T*>(pool.values(args.layer));
    to.position = layout.position;
    to.sequence = layout.sequence;
    to.page_table = layout.page_table;
    to.page_stride = layout.page_stride;
    to.rows = static_cast<int>(layout.rows);
    to.heads = static_cast<int>(args.heads);
    to.kv_heads = static_cast<int>(kv_heads);
    to.dim = static_cast<int>(dim);
    to.window = static_cast<int>(args.window);
    to.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    to.q_pieces = heads_in_pieces(args.q, dim);
    to.kv_pieces = dim % (16 / sizeof(T)) == 0;
    to.runs = static_cast<int>((layout.page_stride * kPageTokens + kKeyRun - 1) / kKeyRun);

    // As many rows of one sequence as the step has of each, on average.
    const int64_t sequences = std::max<int64_t>(1, std::min(layout.sequences, layout.rows));
    const int64_t sequence_rows = (layout.rows + sequences - 1) / sequences;
    dispatch_head_dim(dim, [&](auto padded) {
      constexpr int kDim = decltype(padded)::value;
      if constexpr (std::is_same_v<T, float>) {
        start(FmaTile<kDim, 4>{}, to, sequence_rows);
      } else if (sequence_rows * group <= 16) {
        start(MmaTile<T, kDim, 1, 4, 64>{}, to, sequence_rows);
      } else if constexpr (kDim <= 128) {
        start(MmaTile<T, kDim, 4, 2, 64>{}, to, sequence_rows);
      } else {
        start(MmaTile<T, kDim, 2, 4, 64>{}, to, sequence_rows);
      }
    });
  });
}

}  // namespace at_moe::cuda
