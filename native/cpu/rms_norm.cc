// RMS norm over groups of `dim` columns (contract: backend/ops/elementwise.h). r = 1 / sqrt(mean(x²) + eps).
//   forward   y = x r ⊙ gamma
//   backward  t = gamma ⊙ dy;  dx (+)= r (t - x r² mean(x ⊙ t));  dgamma_j += Σ_n dy_nj x_nj r_n
// Split over rows. With dgamma the two statistics of each group are computed first, then dgamma over columns with rows
// in ascending order (before dx, which may overwrite dy).
#include <cmath>
#include <vector>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/lanes.h"

namespace at_moe {

namespace {

constexpr int64_t kRowGrain = 4;
constexpr int64_t kColumnGrain = 32;

float inverse_rms(const float* x, int64_t n, float eps) {
  const double squares = sum_lanes(n, [x](int64_t i) { return x[i] * x[i]; });
  return static_cast<float>(1 / std::sqrt(squares / static_cast<double>(n) + eps));
}

struct Statistics {
  float r;      // 1 / rms
  float slope;  // r³ mean(x ⊙ gamma ⊙ dy)
};

Statistics statistics(const RmsNormBackward& args, const float* x, const float* dy) {
  const float* gamma = args.gamma;
  const double dot = sum_lanes(args.dim, [=](int64_t i) { return x[i] * (gamma[i] * dy[i]); });
  const double r = inverse_rms(x, args.dim, args.eps);
  return {static_cast<float>(r), static_cast<float>(r * r * r * dot / static_cast<double>(args.dim))};
}

void input_gradient(const RmsNormBackward& args, const Statistics& s, const float* x, const float* dy, float* dx) {
  if (args.accumulate) {
    for (int64_t i = 0; i < args.dim; ++i) dx[i] += s.r * (args.gamma[i] * dy[i]) - s.slope * x[i];
  } else {
    for (int64_t i = 0; i < args.dim; ++i) dx[i] = s.r * (args.gamma[i] * dy[i]) - s.slope * x[i];
  }
}

}  // namespace

void CpuBackend::forward(const RmsNormForward& args) {
  require(args.dim > 0 && args.x.cols % args.dim == 0, "rms_norm: ", args.x.cols, " columns in groups of ", args.dim);
  pool_.run_ranges(args.x.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t first = 0; first < args.x.cols; first += args.dim) {
        const float* x = args.x.row(n) + first;
        float* y = args.y.row(n) + first;
        const float r = inverse_rms(x, args.dim, args.eps);
        for (int64_t i = 0; i < args.dim; ++i) y[i] = x[i] * r * args.gamma[i];
      }
    }
  });
}

void CpuBackend::backward(const RmsNormBackward& args) {
  require(args.dim > 0 && args.x.cols % args.dim == 0, "rms_norm: ", args.x.cols, " columns in groups of ", args.dim);
  const int64_t groups = args.x.cols / args.dim;
  std::vector<Statistics> kept(static_cast<size_t>(args.dgamma ? args.x.rows * groups : 0));
  if (args.dgamma) {
    pool_.run_ranges(args.x.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin * groups; item < end * groups; ++item) {
        const int64_t n = item / groups, first = item % groups * args.dim;
        kept[item] = statistics(args, args.x.row(n) + first, args.dy.row(n) + first);
      }
    });
    pool_.run_ranges(args.dim, kColumnGrain, [&](int64_t begin, int64_t end, int) {
      for (size_t item = 0; item < kept.size(); ++item) {
        const int64_t n = static_cast<int64_t>(item) / groups, first = static_cast<int64_t>(item) % groups * args.dim;
        const float* x = args.x.row(n) + first;
        const float* dy = args.dy.row(n) + first;
        for (int64_t j = begin; j < end; ++j) args.dgamma[j] += dy[j] * (x[j] * kept[item].r);
      }
    });
  }
  if (!args.dx) return;
  pool_.run_ranges(args.x.rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin * groups; item < end * groups; ++item) {
      const int64_t n = item / groups, first = item % groups * args.dim;
      const float* x = args.x.row(n) + first;
      const float* dy = args.dy.row(n) + first;
      input_gradient(args, args.dgamma ? kept[item] : statistics(args, x, dy), x, dy, args.dx.row(n) + first);
    }
  });
}

}  // namespace at_moe
