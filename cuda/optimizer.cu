// AdamW and the norm for clipping (contract: backend/ops/optimizer.h).
//   update        element-wise in f32, a thread per four elements; what depends on the step alone is made in double
//   squared_norm  a block per kBlock values, summed in double; the host adds the blocks in order
#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/backend.h"
#include "cuda/piece.h"
#include "cuda/team.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPiece = kPieceElements<float>;
constexpr int64_t kBlock = 8192;
constexpr int kNormSlot = 0;

struct Rates {
  float rate, root, decay, beta1, fresh1, beta2, fresh2, epsilon, scale;
};

Rates rates_of(const AdamW& args) {
  const auto step = static_cast<double>(args.step);
  return {static_cast<float>(args.learning_rate / (1 - std::pow(args.beta1, step))),
          static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step))),
          static_cast<float>(1 - args.learning_rate * args.weight_decay),
          static_cast<float>(args.beta1),
          static_cast<float>(1 - args.beta1),
          static_cast<float>(args.beta2),
          static_cast<float>(1 - args.beta2),
          static_cast<float>(args.epsilon),
          args.gradient_scale};
}

__global__ void __launch_bounds__(kThreads) adamw(float* parameter, const float* gradient, float* moment1,
                                                  float* moment2, int64_t count, Rates rates, bool aligned) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPiece;
  if (first >= count) return;
  float p[kPiece], g[kPiece], m[kPiece], v[kPiece];
  load_piece(p, parameter, first, count, aligned);
  load_piece(g, gradient, first, count, aligned);
  load_piece(m, moment1, first, count, aligned);
  load_piece(v, moment2, first, count, aligned);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) {
    const float fresh = g[i] * rates.scale;
    m[i] = rates.beta1 * m[i] + rates.fresh1 * fresh;
    v[i] = rates.beta2 * v[i] + rates.fresh2 * fresh * fresh;
    p[i] = rates.decay * p[i] - rates.rate * m[i] / (sqrtf(v[i]) * rates.root + rates.epsilon);
  }
  store_piece(p, parameter, first, count, aligned);
  store_piece(m, moment1, first, count, aligned);
  store_piece(v, moment2, first, count, aligned);
}

__global__ void __launch_bounds__(kThreads)
    block_squares(const float* values, int64_t count, bool aligned, double* partial) {
  const int64_t begin = int64_t{blockIdx.x} * kBlock, end = begin + kBlock < count ? begin + kBlock : count;
  double sum = 0;
#pragma unroll 4
  for (int64_t first = begin + int64_t{threadIdx.x} * kPiece; first < end; first += kThreads * kPiece) {
    float piece[kPiece];
    load_piece(piece, values, first, end, aligned);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sum += static_cast<double>(piece[i]) * piece[i];
  }
  sum = team_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

bool aligned(const float* values) { return in_pieces(matrix(const_cast<float*>(values), 1, 0), kPiece); }

}  // namespace

void CudaBackend::update(const AdamW& args) {
  constexpr int64_t kPerBlock = int64_t{kThreads} * kPiece;
  const auto blocks = static_cast<unsigned>((args.count + kPerBlock - 1) / kPerBlock);
  const bool pieces =
      aligned(args.parameter) && aligned(args.gradient) && aligned(args.moment1) && aligned(args.moment2);
  launch(stream(), {dim3(blocks), dim3(kThreads)}, adamw, args.parameter, args.gradient, args.moment1, args.moment2,
         args.count, rates_of(args), pieces);
}

double CudaBackend::squared_norm(const SquaredNorm& args) {
  const int64_t blocks = (args.count + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  double* sums = scratch<double>(kNormSlot, blocks);
  launch(stream(), {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, block_squares, args.values, args.count,
         aligned(args.values), sums);
  download(partial.data(), sums, partial.size() * sizeof(double));
  double total = 0;
  for (const double value : partial) total += value;
  return total;
}

}  // namespace at_moe::cuda
