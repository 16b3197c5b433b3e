// RMS norm over groups of `dim` columns (contract: backend/ops/elementwise.h). r = 1 / sqrt(mean(x²) + eps).
//   forward   y = x r ⊙ gamma
//   backward  t = gamma ⊙ dy;  dx (+)= r (t - x r² mean(x ⊙ t));  dgamma_j += Σ_n dy_nj x_nj r_n
// Teams of threads have a group each (cuda/rms_norm.cuh). dgamma comes before dx, which may overwrite dy: r of every
// group, then sums over fixed blocks of groups, then these in order.
#include "cuda/rms_norm.cuh"

#include <type_traits>

#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

constexpr int kGroupBlock = 64;  // groups that one partial sum of dgamma covers
constexpr int kColumnThreads = 128;
constexpr int kLargestPiece = kPieceElements<bf16>;
constexpr int kInverseSlot = 0, kPartialSlot = 1;

template <typename T, int n = kPieceElements<T>>
NormRows<T> norm_rows(const Matrix& matrix, int64_t dim) {
  return {rows_of<T>(matrix), in_pieces(matrix, n) && dim % n == 0};
}

Norm norm_of(const Matrix& x, const float* gamma, int64_t dim, float eps) {
  require(dim > 0 && x.cols % dim == 0, "rms_norm: ", x.cols, " columns in groups of ", dim);
  const bool aligned = dim % kLargestPiece == 0 && in_pieces(matrix(const_cast<float*>(gamma), 1, dim), kLargestPiece);
  return {gamma, x.rows, x.cols / dim, dim, eps, aligned};
}

template <int kTeam>
__device__ inline int64_t my_group() {
  return int64_t{blockIdx.x} * (kPhaseThreads / kTeam) + threadIdx.x / kTeam;
}

LaunchShape shape_of(int64_t items) { return {dim3(static_cast<unsigned>(items)), dim3(kPhaseThreads)}; }

template <typename X, typename Y>
__global__ void __launch_bounds__(kPhaseThreads) normalize(Normalize<X, Y> phase) {
  phase.run(blockIdx.x);
}

template <int kTeam, typename T>
__global__ void __launch_bounds__(kPhaseThreads) inverse_of_groups(NormRows<const T> x, Norm norm, float* inverse) {
  const int64_t group = my_group<kTeam>();
  if (group >= norm.rows * norm.groups) return;
  const float r = inverse_rms<kTeam>(x.group(group, norm), norm, x.aligned);
  if (threadIdx.x % kTeam == 0) inverse[group] = r;
}

// partial[b][j] = Σ dy_j x_j r over the groups of block b, ascending.
template <typename X, typename T>
__global__ void gamma_partials(NormRows<const X> x, NormRows<const T> dy, Norm norm, const float* inverse,
                               float* partial) {
  const int64_t column = int64_t{blockIdx.y} * kColumnThreads + threadIdx.x;
  if (column >= norm.dim) return;
  const int64_t begin = int64_t{blockIdx.x} * kGroupBlock, last = norm.rows * norm.groups;
  const int64_t end = begin + kGroupBlock < last ? begin + kGroupBlock : last;
  float sum = 0;
  for (int64_t group = begin; group < end; ++group) {
    const float value = widen(x.group(group, norm)[column]) * inverse[group];
    sum += widen(dy.group(group, norm)[column]) * value;
  }
  partial[blockIdx.x * norm.dim + column] = sum;
}

__global__ void add_partials(const float* partial, int64_t blocks, int64_t dim, float* dgamma) {
  const int64_t column = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (column >= dim) return;
  float sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * dim + column];
  dgamma[column] += sum;
}

template <int kTeam, typename X, typename T>
__global__ void __launch_bounds__(kPhaseThreads)
    input_gradient(NormRows<const X> x, NormRows<const T> dy, NormRows<T> dx, Norm norm, bool accumulate) {
  constexpr int n = kPieceElements<X>;
  const int64_t group = my_group<kTeam>();
  if (group >= norm.rows * norm.groups) return;
  const X* input = x.group(group, norm);
  const T* gradient = dy.group(group, norm);
  T* to = dx.group(group, norm);

  float partial = 0;
  each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
    float values[n], t[n], gamma[n];
    load_piece(values, input, first, norm.dim, x.aligned);
    load_piece(t, gradient, first, norm.dim, dy.aligned);
    load_piece(gamma, norm.gamma, first, norm.dim, norm.aligned);
#pragma unroll
    for (int i = 0; i < n; ++i) partial += values[i] * (gamma[i] * t[i]);
  });
  const float r = inverse_rms<kTeam>(input, norm, x.aligned);
  const float slope = r * r * r * (team_sum<kTeam>(partial) / static_cast<float>(norm.dim));

  each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
    float values[n], t[n], gamma[n], before[n] = {};
    load_piece(values, input, first, norm.dim, x.aligned);
    load_piece(t, gradient, first, norm.dim, dy.aligned);
    load_piece(gamma, norm.gamma, first, norm.dim, norm.aligned);
    if (accumulate) load_piece(before, to, first, norm.dim, dx.aligned);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = before[i] + (r * (gamma[i] * t[i]) - slope * values[i]);
    store_piece(values, to, first, norm.dim, dx.aligned);
  });
}

// Calls f with the size of a team as a constant.
template <typename F>
void with_team(int64_t dim, F&& f) {
  if (dim <= kWarpNormDim) f(std::integral_constant<int, 32>{});
  else f(std::integral_constant<int, kPhaseThreads>{});
}

}  // namespace

void CudaBackend::forward(const RmsNormForward& args) {
  const Norm norm = norm_of(args.x, args.gamma, args.dim, args.eps);
  dispatch(args.x.dtype, args.y.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using Y = decltype(output);
    const Normalize<X, Y> phase{norm_rows<const X>(args.x, norm.dim), norm_rows<Y, kPieceElements<X>>(args.y, norm.dim),
                                norm};
    if (std::is_same_v<X, float> && joins(args.x.rows)) {
      const bool rounds = args.y.dtype == activation_;
      return commands_.add(rounds ? PhaseKind::kNormalize : PhaseKind::kNormalizeHeads, phase, args.y);
    }
    launch(stream(), shape_of(phase.items()), normalize<X, Y>, phase);
  });
}

void CudaBackend::backward(const RmsNormBackward& args) {
  const Norm norm = norm_of(args.x, args.gamma, args.dim, args.eps);
  const LaunchShape shape = shape_of(norm.items());
  dispatch(args.x.dtype, args.dy.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using T = decltype(output);
    const auto x = norm_rows<const X>(args.x, norm.dim);
    const auto dy = norm_rows<const T, kPieceElements<X>>(args.dy, norm.dim);
    with_team(norm.dim, [&](auto team) {
      if (args.dgamma) {
        const int64_t items = norm.rows * norm.groups, blocks = (items + kGroupBlock - 1) / kGroupBlock;
        const auto columns = static_cast<unsigned>((norm.dim + kColumnThreads - 1) / kColumnThreads);
        float* inverse = scratch(kInverseSlot, items);
        float* partial = scratch(kPartialSlot, blocks * norm.dim);
        launch(stream(), shape, inverse_of_groups<team(), X>, x, norm, inverse);
        launch(stream(), {dim3(static_cast<unsigned>(blocks), columns), dim3(kColumnThreads)}, gamma_partials<X, T>, x,
               dy, norm, inverse, partial);
        launch(stream(), {dim3(columns), dim3(kColumnThreads)}, add_partials, partial, blocks, norm.dim, args.dgamma);
      }
      if (!args.dx) return;
      launch(stream(), shape, input_gradient<team(), X, T>, x, dy, norm_rows<T, kPieceElements<X>>(args.dx, norm.dim),
             norm, args.accumulate);
    });
  });
}

}  // namespace at_moe::cuda
