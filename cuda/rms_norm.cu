// RMS norm over groups of `dim` columns (contract: backend/ops/elementwise.h). r = 1 / sqrt(mean(x²) + eps).
//   forward   y = x r ⊙ gamma
//   backward  t = gamma ⊙ dy;  dx (+)= r (t - x r² mean(x ⊙ t));  dgamma_j += Σ_n dy_nj x_nj r_n
// A team of threads has one group: a warp a short one (heads), a block a long one (rows). Each thread keeps to its own
// pieces of the group, so outputs may be inputs. dgamma comes before dx, which may overwrite dy: r of every group, then
// sums over fixed blocks of groups, then these in order.
#include <type_traits>

#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/piece.h"
#include "cuda/team.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarpDim = 512;    // most columns of a group that one warp takes
constexpr int kGroupBlock = 64;  // groups that one partial sum of dgamma covers
constexpr int kColumnThreads = 128;
constexpr int kLargestPiece = kPieceElements<bf16>;
constexpr int kInverseSlot = 0, kPartialSlot = 1;

template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  bool aligned;  // for whole pieces, groups as well

  __device__ T* group(int64_t index, int64_t groups, int64_t dim) const {
    return data + index / groups * stride + index % groups * dim;
  }
};

template <typename T, int n = kPieceElements<T>>
Rows<T> rows_of(const Matrix& matrix, int64_t dim) {
  return {matrix.row<T>(0), matrix.stride, in_pieces(matrix, n) && dim % n == 0};
}

struct Norm {
  const float* gamma;
  int64_t rows, groups, dim;
  float eps;
  bool aligned;  // gamma, for pieces of all types
};

Norm norm_of(const Matrix& x, const float* gamma, int64_t dim, float eps) {
  require(dim > 0 && x.cols % dim == 0, "rms_norm: ", x.cols, " columns in groups of ", dim);
  const bool aligned = dim % kLargestPiece == 0 && in_pieces(matrix(const_cast<float*>(gamma), 1, dim), kLargestPiece);
  return {gamma, x.rows, x.cols / dim, dim, eps, aligned};
}

template <int kTeam>
LaunchShape team_shape(const Norm& norm) {
  constexpr int kTeams = kThreads / kTeam;
  return {dim3(static_cast<unsigned>((norm.rows * norm.groups + kTeams - 1) / kTeams)), dim3(kThreads)};
}

template <int kTeam>
__device__ inline int64_t my_group() {
  return int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
}

// Calls act(first column) for the pieces of n columns that are this thread's.
template <int kTeam, int n, typename Act>
__device__ inline void each_piece(int64_t dim, Act act) {
  for (int64_t first = int64_t{threadIdx.x % kTeam} * n; first < dim; first += int64_t{kTeam} * n) act(first);
}

template <int kTeam, typename T>
__device__ inline float inverse_rms(const T* x, const Norm& norm, bool aligned) {
  constexpr int n = kPieceElements<T>;
  float squares = 0;
  each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
    float values[n];
    load_piece(values, x, first, norm.dim, aligned);
#pragma unroll
    for (int i = 0; i < n; ++i) squares += values[i] * values[i];
  });
  return rsqrtf(team_sum<kTeam>(squares) / static_cast<float>(norm.dim) + norm.eps);
}

template <int kTeam, typename X, typename Y>
__global__ void __launch_bounds__(kThreads) normalize(Rows<const X> x, Rows<Y> y, Norm norm) {
  constexpr int n = kPieceElements<X>;
  const int64_t group = my_group<kTeam>();
  if (group >= norm.rows * norm.groups) return;
  const X* from = x.group(group, norm.groups, norm.dim);
  Y* to = y.group(group, norm.groups, norm.dim);
  const float r = inverse_rms<kTeam>(from, norm, x.aligned);
  each_piece<kTeam, n>(norm.dim, [&](int64_t first) {
    float values[n], gamma[n];
    load_piece(values, from, first, norm.dim, x.aligned);
    load_piece(gamma, norm.gamma, first, norm.dim, norm.aligned);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] *= r * gamma[i];
    store_piece(values, to, first, norm.dim, y.aligned);
  });
}

template <int kTeam, typename T>
__global__ void __launch_bounds__(kThreads) inverse_of_groups(Rows<const T> x, Norm norm, float* inverse) {
  const int64_t group = my_group<kTeam>();
  if (group >= norm.rows * norm.groups) return;
  const float r = inverse_rms<kTeam>(x.group(group, norm.groups, norm.dim), norm, x.aligned);
  if (threadIdx.x % kTeam == 0) inverse[group] = r;
}

// partial[b][j] = Σ dy_j x_j r over the groups of block b, ascending.
template <typename X, typename T>
__global__ void gamma_partials(Rows<const X> x, Rows<const T> dy, Norm norm, const float* inverse, float* partial) {
  const int64_t column = int64_t{blockIdx.y} * kColumnThreads + threadIdx.x;
  if (column >= norm.dim) return;
  const int64_t begin = int64_t{blockIdx.x} * kGroupBlock, last = norm.rows * norm.groups;
  const int64_t end = begin + kGroupBlock < last ? begin + kGroupBlock : last;
  float sum = 0;
  for (int64_t group = begin; group < end; ++group) {
    const float value = widen(x.group(group, norm.groups, norm.dim)[column]) * inverse[group];
    sum += widen(dy.group(group, norm.groups, norm.dim)[column]) * value;
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
__global__ void __launch_bounds__(kThreads)
    input_gradient(Rows<const X> x, Rows<const T> dy, Rows<T> dx, Norm norm, bool accumulate) {
  constexpr int n = kPieceElements<X>;
  const int64_t group = my_group<kTeam>();
  if (group >= norm.rows * norm.groups) return;
  const X* input = x.group(group, norm.groups, norm.dim);
  const T* gradient = dy.group(group, norm.groups, norm.dim);
  T* to = dx.group(group, norm.groups, norm.dim);

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
  if (dim <= kWarpDim) f(std::integral_constant<int, 32>{});
  else f(std::integral_constant<int, kThreads>{});
}

}  // namespace

void CudaBackend::forward(const RmsNormForward& args) {
  const Norm norm = norm_of(args.x, args.gamma, args.dim, args.eps);
  dispatch(args.x.dtype, args.y.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using Y = decltype(output);
    with_team(norm.dim, [&](auto team) {
      launch(stream(), team_shape<team()>(norm), normalize<team(), X, Y>, rows_of<const X>(args.x, norm.dim),
             rows_of<Y, kPieceElements<X>>(args.y, norm.dim), norm);
    });
  });
}

void CudaBackend::backward(const RmsNormBackward& args) {
  const Norm norm = norm_of(args.x, args.gamma, args.dim, args.eps);
  dispatch(args.x.dtype, args.dy.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using T = decltype(output);
    const auto x = rows_of<const X>(args.x, norm.dim);
    const auto dy = rows_of<const T, kPieceElements<X>>(args.dy, norm.dim);
    with_team(norm.dim, [&](auto team) {
      if (args.dgamma) {
        const int64_t items = norm.rows * norm.groups, blocks = (items + kGroupBlock - 1) / kGroupBlock;
        const auto columns = static_cast<unsigned>((norm.dim + kColumnThreads - 1) / kColumnThreads);
        float* inverse = scratch(kInverseSlot, items);
        float* partial = scratch(kPartialSlot, blocks * norm.dim);
        launch(stream(), team_shape<team()>(norm), inverse_of_groups<team(), X>, x, norm, inverse);
        launch(stream(), {dim3(static_cast<unsigned>(blocks), columns), dim3(kColumnThreads)}, gamma_partials<X, T>, x,
               dy, norm, inverse, partial);
        launch(stream(), {dim3(columns), dim3(kColumnThreads)}, add_partials, partial, blocks, norm.dim, args.dgamma);
      }
      if (!args.dx) return;
      launch(stream(), team_shape<team()>(norm), input_gradient<team(), X, T>, x, dy,
             rows_of<T, kPieceElements<X>>(args.dx, norm.dim), norm, args.accumulate);
    });
  });
}

}  // namespace at_moe::cuda
