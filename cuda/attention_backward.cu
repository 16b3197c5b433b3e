// Backward of attention over the T rows of one sequence (contract: backend/ops/attention.h), flash style: P is
// recomputed from lse, and nothing but δ [T, H] is kept. The queries of a key head are T * group rows, token by token.
// Three kernels:
//   δ        one warp per row and head
//   dq       one block per tile of queries and key head; passes over the tiles of keys that they see:
//            S = q·Kᵀ, dP = dout·Vᵀ, dS = P ⊙ (dP - δ), dq += dS·K
//   dk, dv   one block per tile of keys and key head; passes over the tiles of queries that see them:
//            Sᵀ = K·qᵀ, dPᵀ = V·doutᵀ, dv += Pᵀ·dout, dk += dSᵀ·q
// Every sum has one owner and one order. Products are those of cuda/attention.cuh; P and dS are rounded to T for them.
#include <algorithm>
#include <cmath>

#include "cuda/attention.cuh"

namespace at_moe::cuda {

namespace {

constexpr int kDeltaSlot = 0;
constexpr int kDeltaThreads = 128;

template <typename Number>
struct BackwardArguments {
  using T = Number;
  const T *q, *k, *v, *out, *dout;  // from the sequence's first row on, as all below
  T *dq, *dk, *dv;
  int64_t q_stride, k_stride, v_stride, out_stride, dout_stride, dq_stride, dk_stride, dv_stride;
  const float* lse;
  int64_t lse_stride;
  float* delta;  // [tokens, heads]
  int tokens, heads, kv_heads, dim, window;
  float scale;
  bool pieces;

  __device__ int group() const { return heads / kv_heads; }
  __device__ int queries() const { return tokens * group(); }  // of a key head
  // Query r of a key head: token r / group, head kv_head * group + r mod group.
  __device__ int64_t head_of(int kv_head, int r) const { return kv_head * group() + r % group(); }
  __device__ bool sees(int token, int key) const { return key <= token && (window == 0 || key > token - window); }
};

struct QueryState {
  float lse, delta;
};

template <class Tile>
struct BackwardShared {
  using T = typename Tile::T;
  static constexpr int kRowOperand = Tile::kRows * Tile::kStride, kColOperand = Tile::kCols * Tile::kStride;
  static constexpr int kWeightStride = Tile::kCols + Tile::kPad, kWeights = Tile::kRows * kWeightStride;
  static constexpr int kFixed = 2 * (kRowOperand + kWeights) * sizeof(T) + 2 * Tile::kCols * sizeof(QueryState);
  static constexpr int kStage = 2 * kColOperand * sizeof(T);
  static constexpr int kMost = 99 * 1024;
  static constexpr int kStages = kFixed + 2 * kStage <= kMost ? 2 : 1;
  static constexpr size_t kBytes = kFixed + kStages * kStage;
  static_assert(kBytes <= kMost);

  T *rows[2], *weights[2], *ring;
  QueryState* states;  // [kStages, kCols]

  __device__ BackwardShared() {
    T* memory = shared_memory<T>();
    for (int i = 0; i < 2; ++i) {
      rows[i] = memory + i * kRowOperand;
      weights[i] = memory + 2 * kRowOperand + i * kWeights;
    }
    ring = memory + 2 * (kRowOperand + kWeights);
    states = reinterpret_cast<QueryState*>(ring + kStages * 2 * kColOperand);
  }
  __device__ T* cols(int slot, int i) const { return ring + (2 * slot + i) * kColOperand; }
};

// Calls compute(tile, slot) for tiles [begin, end) of columns, each after fetch(tile, slot), which begins asynchronous
// copies.
template <int kStages, typename Fetch, typename Compute>
__device__ void pass(int begin, int end, Fetch&& fetch, Compute&& compute) {
  if (begin < end) fetch(begin, 0);
  cp_async_commit();
  int slot = 0;
  for (int tile = begin; tile < end; ++tile) {
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kStages == 2) {
      if (tile + 1 < end) fetch(tile + 1, 1 - slot);
      cp_async_commit();
      compute(tile, slot);
      slot = 1 - slot;
    } else {
      compute(tile, 0);
      __syncthreads();
      if (tile + 1 < end) fetch(tile + 1, 0);
      cp_async_commit();
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kDeltaThreads) sum_delta(BackwardArguments<T> args) {
  const int64_t index = int64_t{blockIdx.x} * (kDeltaThreads / 32) + warp();
  if (index >= int64_t{args.tokens} * args.heads) return;
  const int64_t n = index / args.heads, column = index % args.heads * args.dim;
  const T* out = args.out + n * args.out_stride + column;
  const T* dout = args.dout + n * args.dout_stride + column;
  float sum = 0;
  for (int i = lane(); i < args.dim; i += 32) sum = fmaf(widen(out[i]), widen(dout[i]), sum);
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (lane() == 0) args.delta[index] = sum;
}

// Rows of q and dout from query `first` of a key head on.
template <class Tile, int kRows, typename T>
__device__ void load_queries(const BackwardArguments<T>& args, int kv_head, int first, T* q, T* dout) {
  const auto row_of = [&](const T* memory, int64_t stride) {
    return [=, &args](int r) -> const T* {
      if (first + r >= args.queries()) return nullptr;
      return memory + (first + r) / args.group() * stride + args.head_of(kv_head, first + r) * args.dim;
    };
  };
  load_rows<Tile, kRows>(q, args.q, args.dim, args.pieces, row_of(args.q, args.q_stride));
  load_rows<Tile, kRows>(dout, args.dout, args.dim, args.pieces, row_of(args.dout, args.dout_stride));
}

// Rows of k and v from key `first` on.
template <class Tile, int kRows, typename T>
__device__ void load_keys(const BackwardArguments<T>& args, int kv_head, int first, T* k, T* v) {
  const auto row_of = [&](const T* memory, int64_t stride) {
    return [=, &args](int r) -> const T* {
      if (first + r >= args.tokens) return nullptr;
      return memory + (first + r) * stride + int64_t{kv_head} * args.dim;
    };
  };
  load_rows<Tile, kRows>(k, args.k, args.dim, args.pieces, row_of(args.k, args.k_stride));
  load_rows<Tile, kRows>(v, args.v, args.dim, args.pieces, row_of(args.v, args.v_stride));
}

template <typename T>
__device__ QueryState state_of(const BackwardArguments<T>& args, int kv_head, int query) {
  if (query >= args.queries()) return {0, 0};
  const int64_t n = query / args.group(), head = args.head_of(kv_head, query);
  return {args.lse[n * args.lse_stride + head], args.delta[n * args.heads + head]};
}

__device__ float probability(float score, float scale, float lse) { return expf(fmaf(score, scale, -lse)); }

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kDim <= 128 ? 2 : 1)
    backward_queries(BackwardArguments<typename Tile::T> args) {
  using T = typename Tile::T;
  using Shared = BackwardShared<Tile>;
  const Shared shared;
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);  // those with most keys first
  const int kv_head = blockIdx.y, first = tile * Tile::kRows;
  load_queries<Tile, Tile::kRows>(args, kv_head, first, shared.rows[0], shared.rows[1]);

  QueryState state[Tile::kThreadRows];
  int token[Tile::kThreadRows];  // -1: none
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
    const int query = first + Tile::row(i);
    state[i] = state_of(args, kv_head, query);
    token[i] = query < args.queries() ? query / args.group() : -1;
  }
  typename Tile::Sums dq;
  clear<Tile>(dq);

  const int first_token = first / args.group();
  const int last_token = min(first + Tile::kRows, args.queries()) - 1;
  const int begin = args.window > 0 ? max(0, first_token - args.window + 1) / Tile::kCols : 0;
  const int end = last_token / args.group() / Tile::kCols + 1;
  const auto fetch = [&](int keys, int slot) {
    load_keys<Tile, Tile::kCols>(args, kv_head, keys * Tile::kCols, shared.cols(slot, 0), shared.cols(slot, 1));
  };
  pass<Shared::kStages>(begin, end, fetch, [&](int keys, int slot) {
    typename Tile::Scores s, dp;
    Tile::score(shared.rows[0], shared.cols(slot, 0), s);
    Tile::score(shared.rows[1], shared.cols(slot, 1), dp);
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadCols; ++j) {
        const bool seen = args.sees(token[i], keys * Tile::kCols + Tile::col(j));
        const float p = probability(s.at(i, j), args.scale, state[i].lse);
        s.at(i, j) = seen ? p * (dp.at(i, j) - state[i].delta) : 0;
      }
    }
    Tile::store(s, shared.weights[0], Shared::kWeightStride);
    __syncthreads();
    Tile::accumulate(shared.weights[0], Shared::kWeightStride, shared.cols(slot, 0), dq);
  });

#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
    if (token[i] < 0) continue;
    T* to = args.dq + token[i] * args.dq_stride + args.head_of(kv_head, first + Tile::row(i)) * args.dim;
#pragma unroll
    for (int j = 0; j < Tile::kThreadDims; ++j) {
      if (Tile::dim(j) < args.dim) to[Tile::dim(j)] = narrow<T>(dq.at(i, j) * args.scale);
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kDim <= 128 ? 2 : 1)
    backward_keys(BackwardArguments<typename Tile::T> args) {
  using T = typename Tile::T;
  using Shared = BackwardShared<Tile>;
  const Shared shared;
  const int kv_head = blockIdx.y, first = static_cast<int>(blockIdx.x) * Tile::kRows;
  load_keys<Tile, Tile::kRows>(args, kv_head, first, shared.rows[0], shared.rows[1]);
  typename Tile::Sums dk, dv;
  clear<Tile>(dk);
  clear<Tile>(dv);

  const int last_token = args.window > 0 ? min(args.tokens, first + Tile::kRows - 1 + args.window) : args.tokens;
  const int begin = first * args.group() / Tile::kCols;
  const int end = (last_token * args.group() + Tile::kCols - 1) / Tile::kCols;
  const auto fetch = [&](int queries, int slot) {
    const int at = queries * Tile::kCols, thread = static_cast<int>(threadIdx.x);
    load_queries<Tile, Tile::kCols>(args, kv_head, at, shared.cols(slot, 0), shared.cols(slot, 1));
    if (thread < Tile::kCols) shared.states[slot * Tile::kCols + thread] = state_of(args, kv_head, at + thread);
  };
  pass<Shared::kStages>(begin, end, fetch, [&](int queries, int slot) {
    typename Tile::Scores s, dp;
    Tile::score(shared.rows[0], shared.cols(slot, 0), s);
    Tile::score(shared.rows[1], shared.cols(slot, 1), dp);
#pragma unroll
    for (int j = 0; j < Tile::kThreadCols; ++j) {
      const int query = queries * Tile::kCols + Tile::col(j);
      const int token = query < args.queries() ? query / args.group() : -1;
      const QueryState state = shared.states[slot * Tile::kCols + Tile::col(j)];
#pragma unroll
      for (int i = 0; i < Tile::kThreadRows; ++i) {
        const bool seen = args.sees(token, first + Tile::row(i));
        const float p = seen ? probability(s.at(i, j), args.scale, state.lse) : 0;
        s.at(i, j) = p;
        dp.at(i, j) = seen ? p * (dp.at(i, j) - state.delta) : 0;
      }
    }
    Tile::store(s, shared.weights[0], Shared::kWeightStride);
    Tile::store(dp, shared.weights[1], Shared::kWeightStride);
    __syncthreads();
    Tile::accumulate(shared.weights[0], Shared::kWeightStride, shared.cols(slot, 1), dv);
    Tile::accumulate(shared.weights[1], Shared::kWeightStride, shared.cols(slot, 0), dk);
  });

#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
    const int key = first + Tile::row(i);
    if (key >= args.tokens) continue;
#pragma unroll
    for (int j = 0; j < Tile::kThreadDims; ++j) {
      if (Tile::dim(j) >= args.dim) continue;
      const int64_t column = int64_t{kv_head} * args.dim + Tile::dim(j);
      args.dk[key * args.dk_stride + column] = narrow<T>(dk.at(i, j) * args.scale);
      args.dv[key * args.dv_stride + column] = narrow<T>(dv.at(i, j));
    }
  }
}

template <typename T>
BackwardArguments<T> arguments(const AttentionBackward& args) {
  BackwardArguments<T> to{};
  to.q = args.q.row<T>(args.begin);
  to.k = args.k.row<T>(args.begin);
  to.v = args.v.row<T>(args.begin);
  to.out = args.out.row<T>(args.begin);
  to.dout = args.dout.row<T>(args.begin);
  to.dq = args.dq.row<T>(args.begin);
  to.dk = args.dk.row<T>(args.begin);
  to.dv = args.dv.row<T>(args.begin);
  to.q_stride = args.q.stride;
  to.k_stride = args.k.stride;
  to.v_stride = args.v.stride;
  to.out_stride = args.out.stride;
  to.dout_stride = args.dout.stride;
  to.dq_stride = args.dq.stride;
  to.dk_stride = args.dk.stride;
  to.dv_stride = args.dv.stride;
  to.lse = args.lse.row(args.begin);
  to.lse_stride = args.lse.stride;
  to.tokens = static_cast<int>(args.end - args.begin);
  to.heads = static_cast<int>(args.heads);
  to.kv_heads = static_cast<int>(args.kv_heads);
  to.dim = static_cast<int>(args.head_dim);
  to.window = static_cast<int>(args.window);
  to.scale = 1.0f / std::sqrt(static_cast<float>(args.head_dim));
  to.pieces = heads_in_pieces(args.q, args.head_dim) && heads_in_pieces(args.k, args.head_dim) &&
              heads_in_pieces(args.v, args.head_dim) && heads_in_pieces(args.dout, args.head_dim);
  return to;
}

template <class Tile>
void launch_backward(Stream stream, const BackwardArguments<typename Tile::T>& args) {
  const auto tiles = [](int rows) { return static_cast<unsigned>((rows + Tile::kRows - 1) / Tile::kRows); };
  const dim3 block(Tile::kThreads), kv_heads(static_cast<unsigned>(args.kv_heads));
  const int queries = args.tokens * (args.heads / args.kv_heads);
  launch(stream, {dim3(tiles(queries), kv_heads.x), block, BackwardShared<Tile>::kBytes}, backward_queries<Tile>, args);
  launch(stream, {dim3(tiles(args.tokens), kv_heads.x), block, BackwardShared<Tile>::kBytes}, backward_keys<Tile>,
         args);
}

}  // namespace

void CudaBackend::backward(const AttentionBackward& args) {
  require(args.kv_heads > 0 && args.heads % args.kv_heads == 0, "attention: ", args.heads, " heads over ",
          args.kv_heads, " key heads");
  if (args.begin >= args.end) return;
  dispatch(args.q.dtype, [&](auto element) {
    using T = decltype(element);
    BackwardArguments<T> to = arguments<T>(args);
    const int64_t states = (args.end - args.begin) * args.heads, warps = kDeltaThreads / 32;
    to.delta = scratch(kDeltaSlot, states);
    launch(stream(), {dim3(static_cast<unsigned>((states + warps - 1) / warps)), dim3(kDeltaThreads)}, sum_delta<T>,
           to);
    dispatch_head_dim(args.head_dim, [&](auto padded) {
      constexpr int kDim = decltype(padded)::value;
      if constexpr (std::is_same_v<T, float>) {
        launch_backward<FmaTile<kDim, kDim <= 128 ? 4 : 2>>(stream(), to);
      } else {
        launch_backward<MmaTile<T, kDim, kDim <= 128 ? 4 : 2, 2, 32>>(stream(), to);
      }
    });
  });
}

}  // namespace at_moe::cuda
