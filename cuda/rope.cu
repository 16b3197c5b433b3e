// Rotary embedding, half-split form (contract: backend/ops/elementwise.h). c, s = cos, sin of position * inv_freq_i.
//   forward   (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s)  for every head of q and k;
//             then k and v go to their slot: page page_table[sequence][position / 16], token position mod 16
//   backward  the rotation by -angle on dq and dk
// One block per row. The angle is reduced to a fraction of a turn in double, where position * inv_freq is exact enough;
// its cosine and sine are then taken in float, once for all heads, and kept in shared memory.
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/kv.h"
#include "cuda/number.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;

template <typename X, typename T>
struct RopeArguments {
  const X *q_in, *k_in;
  T *q, *k;
  const T* v;
  int64_t q_in_stride, k_in_stride, q_stride, k_stride, v_stride;
  int q_heads, kv_heads, half;
  const double* inv_freq;
  const int32_t *position, *sequence, *page_table;
  int64_t page_stride;
  T *keys, *values;  // of the layer, or null
};

// table: cos [half], sin [half]
__device__ void fill_table(int32_t position, const double* inv_freq, int half, float* table) {
  constexpr double kTurnsPerRadian = 0.159154943091895335769;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    const double turns = position * inv_freq[i] * kTurnsPerRadian;
    const float half_turns = static_cast<float>(2 * (turns - rint(turns)));
    sincospif(half_turns, &table[half + i], &table[i]);
  }
  __syncthreads();
}

// Calls put(head, i, value) with every element of the rotated heads, which are written to y as well.
template <typename X, typename T, typename Put>
__device__ void rotate(const X* x, T* y, int heads, int half, const float* table, float direction, Put&& put) {
  for (int pair = threadIdx.x; pair < heads * half; pair += kThreads) {
    const int head = pair / half, i = pair % half, low = head * 2 * half + i, high = low + half;
    const float c = table[i], s = direction * table[half + i], a = widen(x[low]), b = widen(x[high]);
    y[low] = narrow<T>(a * c - b * s);
    y[high] = narrow<T>(b * c + a * s);
    put(head, i, y[low]);
    put(head, i + half, y[high]);
  }
}

template <typename X, typename T>
__global__ void __launch_bounds__(kThreads) rotate_and_store(RopeArguments<X, T> args) {
  float* table = shared_memory<float>();
  const int64_t row = blockIdx.x;
  const int32_t position = args.position[row];
  fill_table(position, args.inv_freq, args.half, table);
  rotate(args.q_in + row * args.q_in_stride, args.q + row * args.q_stride, args.q_heads, args.half, table, 1,
         [](int, int, T) {});
  const X* k_in = args.k_in + row * args.k_in_stride;
  T* k = args.k + row * args.k_stride;
  if (!args.keys) {
    rotate(k_in, k, args.kv_heads, args.half, table, 1, [](int, int, T) {});
    return;
  }
  const int dim = 2 * args.half;
  const int64_t page = args.page_table[args.sequence[row] * args.page_stride + position / kPageTokens];
  const int64_t slot = (page * args.kv_heads * kPageTokens + position % kPageTokens) * dim;
  const auto at = [slot, dim](int head, int i) { return slot + int64_t{head} * kPageTokens * dim + i; };
  rotate(k_in, k, args.kv_heads, args.half, table, 1,
         [&](int head, int i, T value) { args.keys[at(head, i)] = value; });
  const T* v = args.v + row * args.v_stride;
  for (int j = threadIdx.x; j < args.kv_heads * dim; j += kThreads) args.values[at(j / dim, j % dim)] = v[j];
}

template <typename T>
__global__ void __launch_bounds__(kThreads) rotate_back(RopeArguments<T, T> args) {
  float* table = shared_memory<float>();
  const int64_t row = blockIdx.x;
  fill_table(args.position[row], args.inv_freq, args.half, table);
  T *q = args.q + row * args.q_stride, *k = args.k + row * args.k_stride;
  rotate(q, q, args.q_heads, args.half, table, -1, [](int, int, T) {});
  rotate(k, k, args.kv_heads, args.half, table, -1, [](int, int, T) {});
}

template <typename X, typename T>
RopeArguments<X, T> arguments(const Matrix& q, const Matrix& k, int64_t head_dim, const double* inv_freq,
                              const int32_t* position) {
  RopeArguments<X, T> args{};
  args.q = q.row<T>(0);
  args.k = k.row<T>(0);
  args.q_stride = q.stride;
  args.k_stride = k.stride;
  args.q_heads = static_cast<int>(q.cols / head_dim);
  args.kv_heads = static_cast<int>(k.cols / head_dim);
  args.half = static_cast<int>(head_dim / 2);
  args.inv_freq = inv_freq;
  args.position = position;
  return args;
}

LaunchShape shape_of(int64_t rows, int64_t head_dim) {
  return {dim3(static_cast<unsigned>(rows)), dim3(kThreads), static_cast<size_t>(head_dim) * sizeof(float)};
}

}  // namespace

void CudaBackend::forward(const RopeForward& args) {
  require(args.head_dim % 2 == 0, "rope: head_dim ", args.head_dim, " is odd");
  dispatch(args.q_in.dtype, args.q.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using T = decltype(output);
    auto to = arguments<X, T>(args.q, args.k, args.head_dim, args.inv_freq, args.layout.position);
    to.q_in = args.q_in.row<X>(0);
    to.k_in = args.k_in.row<X>(0);
    to.q_in_stride = args.q_in.stride;
    to.k_in_stride = args.k_in.stride;
    if (args.kv) {
      const auto& pool = static_cast<const CudaKvPool&>(*args.kv);
      to.v = args.v.row<T>(0);
      to.v_stride = args.v.stride;
      to.sequence = args.layout.sequence;
      to.page_table = args.layout.page_table;
      to.page_stride = args.layout.page_stride;
      to.keys = static_cast<T*>(pool.keys(args.layer));
      to.values = static_cast<T*>(pool.values(args.layer));
    }
    launch(stream(), shape_of(args.layout.rows, args.head_dim), rotate_and_store<X, T>, to);
  });
}

void CudaBackend::backward(const RopeBackward& args) {
  dispatch(args.dq.dtype, [&](auto element) {
    using T = decltype(element);
    launch(stream(), shape_of(args.dq.rows, args.head_dim), rotate_back<T>,
           arguments<T, T>(args.dq, args.dk, args.head_dim, args.inv_freq, args.position));
  });
}

}  // namespace at_moe::cuda
