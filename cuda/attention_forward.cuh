// The kernel behind cuda/attention.cu. A block has some adjacent rows of one sequence and query heads of one key head:
// their queries are the rows of S = q·Kᵀ and P·V over the keys, chunk by chunk, K and V of a chunk passing in turn through
// a ring of asynchronous copies. Within a run of keys the maximum moves with the chunks, and what was summed before is
// scaled by exp(old - new); the result of a run is then blended into that of the runs before.
//   grid x   windows of tile_rows rows, up to where the sequence changes; then, per sequence, the rows from its first
//            one, where that is not at the begin of a window, to the window's end (decode has one row per window and
//            no more)
//   grid y   key heads times parts of their group of query heads
//   grid z   1; or, where that leaves multiprocessors idle, blocks that take every gridDim.z-th run and leave max, sum
//            and weighted values of each in scratch, to be blended afterwards (cuda/attention_runs.cuh)
// Chunks lie at fixed positions and both ways blend with the same arithmetic, so a row's bits depend on neither.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/attention_runs.cuh"

namespace at_moe::cuda {

inline constexpr int kRun = static_cast<int>(kKeyRun), kPage = static_cast<int>(kPageTokens);

template <typename Number>
struct ForwardArguments {
  using T = Number;
  const T* q;
  T* out;
  float* lse;  // or null
  int64_t q_stride, out_stride, lse_stride;
  const T *keys, *values;  // of the layer
  const int32_t *position, *sequence, *page_table;
  int64_t page_stride;
  int rows, heads, kv_heads, dim, window;
  int tile_rows, tile_heads;
  float scale;
  bool q_pieces, kv_pieces;
  int runs;              // that a page table can name
  float* partial;        // [rows, heads, runs, dim], or null
  SoftmaxState* states;  // [rows, heads, runs]
};

// The arguments at an address, in shared memory because registers are short.
template <typename Arguments, int kThreads>
__device__ const Arguments& shared_copy(const void* from) {
  constexpr int kWords = sizeof(Arguments) / sizeof(uint64_t);
  static_assert(sizeof(Arguments) % sizeof(uint64_t) == 0 && kWords <= kThreads);
  __shared__ uint64_t words[kWords];
  if (threadIdx.x < kWords) words[threadIdx.x] = static_cast<const uint64_t*>(from)[threadIdx.x];
  __syncthreads();
  return *reinterpret_cast<const Arguments*>(words);
}

struct KeyRange {
  int first, last;
};

// What a block does, in shared memory because registers are short. Query r is that of row begin + r / heads and head
// first_head + r mod heads.
struct BlockTask {
  int begin, end;  // rows
  int kv_head, first_head, heads, queries;
  KeyRange keys;
  const int32_t* pages;
};

// False for a sequence that has no rows of its own between two windows.
template <int kThreads, typename Arguments>
__device__ bool find_task(const Arguments& args, BlockTask& task) {
  const int thread = threadIdx.x, size = args.tile_rows, windows = (args.rows + size - 1) / size;
  const int wanted = static_cast<int>(blockIdx.x) - windows;
  if (thread == 0) task.begin = wanted < 0 ? static_cast<int>(blockIdx.x) * size : -1;
  __syncthreads();
  if (wanted >= 0) {
    for (int n = thread; n < args.rows; n += kThreads) {
      if (n % size != 0 && args.sequence[n] == wanted && args.sequence[n - 1] != wanted) task.begin = n;
    }
    __syncthreads();
    if (task.begin < 0) return false;
  }
  const int begin = task.begin, sequence = args.sequence[begin], n = begin + thread;
  const int window_end = min((begin / size + 1) * size, args.rows);
  if (n < window_end && args.sequence[n] == sequence && (n + 1 == window_end || args.sequence[n + 1] != sequence)) {
    const int group = args.heads / args.kv_heads, parts = (group + args.tile_heads - 1) / args.tile_heads;
    const int kv_head = blockIdx.y / parts, part = blockIdx.y % parts * args.tile_heads;
    const int heads = min(args.tile_heads, group - part);
    task.end = n + 1;
    task.kv_head = kv_head;
    task.first_head = kv_head * group + part;
    task.heads = heads;
    task.queries = (n + 1 - begin) * heads;
    task.keys = {first_visible(args.position[begin], args.window), args.position[n]};
    task.pages = args.page_table + sequence * args.page_stride;
  }
  __syncthreads();
  return true;
}

// The order in which chunks of keys pass: those of a block's runs that a row sees, of each K, then V.
template <class Tile>
struct ChunkCursor {
  static constexpr int kRunChunks = kRun / Tile::kCols;
  const KeyRange& keys;
  int run = 0, chunk = 0;
  bool values = false;

  __device__ int begin(int of_run) const { return max(of_run * kRunChunks, keys.first / Tile::kCols); }
  __device__ int end(int of_run) const { return min((of_run + 1) * kRunChunks, keys.last / Tile::kCols + 1); }
  __device__ void start(int at_run) {
    run = at_run;
    chunk = begin(run);
    values = false;
  }
  __device__ void advance() {
    if (values && ++chunk == end(run)) return start(run + static_cast<int>(gridDim.z));
    values = !values;
  }
};

template <class Tile>
struct ForwardShared {
  using T = typename Tile::T;
  static constexpr int kWeightStride = Tile::kCols + Tile::kPad;
  static constexpr int kGroups = Tile::kCols / (Tile::kRowLanes * Tile::kGroupCols);
  static constexpr int kChunk = Tile::kCols * Tile::kStride;
  static constexpr int kFixed = (Tile::kRows * (Tile::kStride + kWeightStride)) * sizeof(T) +
                                ((Tile::kSplits + kGroups) * sizeof(float) + sizeof(KeyRange)) * Tile::kRows;
  static constexpr int kMost = 99 * 1024 - 512;  // what every architecture has, but for static variables
  static constexpr int kStages = kFixed + 3 * kChunk * sizeof(T) <= kMost ? 3 : 2;
  static constexpr size_t kBytes = kFixed + kStages * kChunk * sizeof(T);
  static_assert(kBytes <= kMost);
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kThreads == 256 && Tile::kDim <= 128 ? 2 : 1)
    attend(const void* arguments) {
  using T = typename Tile::T;
  using Shared = ForwardShared<Tile>;
  constexpr int kRows = Tile::kRows, kThreadRows = Tile::kThreadRows, kStages = Shared::kStages;
  constexpr float kLog2e = 1.44269504f;

  const auto& args = shared_copy<ForwardArguments<T>, Tile::kThreads>(arguments);
  T* q = shared_memory<T>();
  T* weights = q + kRows * Tile::kStride;
  T* ring = weights + kRows * Shared::kWeightStride;
  float* maxima = reinterpret_cast<float*>(ring + kStages * Shared::kChunk);        // [kSplits, kRows]
  float* sums = maxima + Tile::kSplits * kRows;                                     // [kGroups, kRows]
  KeyRange* visible = reinterpret_cast<KeyRange*>(sums + Shared::kGroups * kRows);  // [kRows], of a query

  __shared__ BlockTask task;
  if (!find_task<Tile::kThreads>(args, task)) return;
  const int first_run = task.keys.first / kRun + blockIdx.z;
  if (first_run > task.keys.last / kRun) return;
  ChunkCursor<Tile> next{task.keys};
  next.start(first_run);

  const auto fetch = [&](int slot) {
    if (next.run <= task.keys.last / kRun) {
      const T* memory = next.values ? args.values : args.keys;
      const int first = next.chunk * Tile::kCols;
      load_rows<Tile, Tile::kCols>(ring + slot * Shared::kChunk, memory, args.dim, args.kv_pieces, [&](int r) {
        const int key = first + r;
        if (key < task.keys.first || key > task.keys.last) return static_cast<const T*>(nullptr);
        return memory +
               ((int64_t{task.pages[key / kPage]} * args.kv_heads + task.kv_head) * kPage + key % kPage) * args.dim;
      });
      next.advance();
    }
    cp_async_commit();
  };
  load_rows<Tile, kRows>(q, args.q, args.dim, args.q_pieces, [&](int r) {
    return r < task.queries ? args.q + (task.begin + r / task.heads) * args.q_stride +
                                  int64_t{task.first_head + r % task.heads} * args.dim
                            : nullptr;
  });
  for (int slot = 0; slot < kStages - 1; ++slot) fetch(slot);
  if (const int r = threadIdx.x; r < kRows) {
    const int position = r < task.queries ? args.position[task.begin + r / task.heads] : -1;
    visible[r] = {first_visible(position, args.window), position};
  }

  int slot = 0;
  const auto take_chunk = [&]() -> const T* {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fetch((slot + kStages - 1) % kStages);
    const T* chunk = ring + slot * Shared::kChunk;
    slot = (slot + 1) % kStages;
    return chunk;
  };

  SoftmaxState state[kThreadRows];
  for (int i = 0; i < kThreadRows; ++i) state[i] = {0, 0};
  typename Tile::Sums out;
  clear<Tile>(out);

  for (int run = first_run; run <= task.keys.last / kRun; run += static_cast<int>(gridDim.z)) {
    SoftmaxState of_run[kThreadRows];  // its maximum before scaling, until the end of the run
    for (int i = 0; i < kThreadRows; ++i) of_run[i] = {-INFINITY, 0};
    typename Tile::Sums values;
    clear<Tile>(values);
    for (int chunk = next.begin(run); chunk < next.end(run); ++chunk) {
      typename Tile::Scores scores;
      Tile::score(q, take_chunk(), scores);
      float top[kThreadRows];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        top[i] = of_run[i].maximum;
        const KeyRange keys = visible[Tile::row(i)];
#pragma unroll
        for (int j = 0; j < Tile::kThreadCols; ++j) {
          const int key = chunk * Tile::kCols + Tile::col(j);
          float& score = scores.at(i, j);
          score = key >= keys.first && key <= keys.last ? score : -INFINITY;
          top[i] = fmaxf(top[i], score);
        }
        for (int by = Tile::kRowLanes / 2; by > 0; by /= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], by));
      }
      if constexpr (Tile::kSplits > 1) {
        for (int i = 0; i < kThreadRows; ++i) {
          if (lane() % Tile::kRowLanes == 0) maxima[Tile::split() * kRows + Tile::row(i)] = top[i];
        }
        __syncthreads();
        for (int i = 0; i < kThreadRows; ++i) {
          for (int part = 0; part < Tile::kSplits; ++part) {
            top[i] = fmaxf(top[i], maxima[part * kRows + Tile::row(i)]);
          }
        }
      }

      // P, and its sums over groups of adjacent keys, which are the same however warps share the chunk.
      constexpr int kThreadGroups = Tile::kThreadCols / Tile::kGroupCols;
      float keep[kThreadRows];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const float shift = top[i] == -INFINITY ? 0 : top[i];
        keep[i] = exp2f((of_run[i].maximum - shift) * (args.scale * kLog2e));
        of_run[i].maximum = top[i];
#pragma unroll
        for (int g = 0; g < kThreadGroups; ++g) {
          float sum = 0;
#pragma unroll
          for (int j = g * Tile::kGroupCols; j < (g + 1) * Tile::kGroupCols; ++j) {
            float& score = scores.at(i, j);
            score = exp2f((score - shift) * (args.scale * kLog2e));
            sum += score;
          }
          for (int by = Tile::kRowLanes / 2; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
          const int group_index = Tile::split() * kThreadGroups + g;
          if (lane() % Tile::kRowLanes == 0) sums[group_index * kRows + Tile::row(i)] = sum;
        }
      }
      Tile::store(scores, weights, Shared::kWeightStride);

      const T* v = take_chunk();
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        float sum = 0;
        for (int g = 0; g < Shared::kGroups; ++g) sum += sums[g * kRows + Tile::row(i)];
        of_run[i].sum = fmaf(of_run[i].sum, keep[i], sum);
#pragma unroll
        for (int j = 0; j < Tile::kThreadDims; ++j) values.at(i, j) *= keep[i];
      }
      Tile::accumulate(weights, Shared::kWeightStride, v, values);
    }

#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      of_run[i].maximum *= args.scale;
      if (!args.partial) {
        const BlendFactors factors = blend(state[i], of_run[i]);
#pragma unroll
        for (int j = 0; j < Tile::kThreadDims; ++j) out.at(i, j) = blend(out.at(i, j), values.at(i, j), factors);
        continue;
      }
      const int r = Tile::row(i);
      if (r >= task.queries) continue;
      const int64_t at =
          (int64_t{task.begin + r / task.heads} * args.heads + task.first_head + r % task.heads) * args.runs + run;
      if (Tile::split() == 0 && lane() % Tile::kRowLanes == 0) args.states[at] = of_run[i];
#pragma unroll
      for (int j = 0; j < Tile::kThreadDims; ++j) {
        if (Tile::dim(j) < args.dim) args.partial[at * args.dim + Tile::dim(j)] = values.at(i, j);
      }
    }
  }
  if (args.partial) return;

#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = Tile::row(i);
    if (r >= task.queries) continue;
    const int64_t n = task.begin + r / task.heads, head = task.first_head + r % task.heads;
    const float scale = 1.0f / state[i].sum;
    T* to = args.out + n * args.out_stride + head * args.dim;
#pragma unroll
    for (int j = 0; j < Tile::kThreadDims; ++j) {
      if (Tile::dim(j) < args.dim) to[Tile::dim(j)] = narrow<T>(out.at(i, j) * scale);
    }
    if (args.lse && Tile::split() == 0 && lane() % Tile::kRowLanes == 0) {
      args.lse[n * args.lse_stride + head] = state[i].maximum + logf(state[i].sum);
    }
  }
}

}  // namespace at_moe::cuda
