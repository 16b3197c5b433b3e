// A task owns a block of outputs by a group of inputs and walks the runs in order; a run is reduced from zero in scratch
// and then added. g is turned so that the tokens of an output are neighbours, x copied into panels of 16 inputs.
#include <algorithm>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/product.h"

namespace at_moe {

using cpu::GradientProduct;
using cpu::Kernels;
using cpu::Tile;

namespace {

constexpr int64_t kOutputs = 96;  // a multiple of every tile's rows and of a panel
constexpr int64_t kInputs = 8 * kPanel;
constexpr int64_t kPad = 16;  // keeps rows of accumulators off one set of the first-level cache

// in [rows, cols] -> out[c][n], rows of out kGradientRun apart.
void turn(const Kernels& kernels, const float* in, int64_t in_row, int64_t rows, int64_t cols, float* out) {
  const int64_t whole_rows = rows / kPanel * kPanel, whole_cols = cols / kPanel * kPanel;
  for (int64_t n = 0; n < whole_rows; n += kPanel) {
    for (int64_t c = 0; c < whole_cols; c += kPanel) {
      kernels.transpose(in + n * in_row + c, in_row, out + c * kGradientRun + n, kGradientRun);
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = n < whole_rows ? whole_cols : 0; c < cols; ++c) out[c * kGradientRun + n] = in[n * in_row + c];
  }
}

// `rows` rows of `cols` columns into panels [rows][16], the last one filled up with zeros.
void cut_panels(const float* in, int64_t in_row, int64_t rows, int64_t cols, float* out) {
  const int64_t whole = cols / kPanel * kPanel;
  for (int64_t n = 0; n < rows; ++n, in += in_row, out += kPanel) {
    for (int64_t c = 0; c < whole; c += kPanel) std::memcpy(out + c * rows, in + c, sizeof(float) * kPanel);
    for (int64_t c = whole; c < (cols + kPanel - 1) / kPanel * kPanel; ++c) {
      out[whole * rows + c - whole] = c < cols ? in[c] : 0.0f;
    }
  }
}

}  // namespace

void CpuBackend::accumulate(std::span<const GradientProduct> products) {
  const Kernels& kernels = kernels_;
  struct Task {
    const GradientProduct* product;
    int64_t output, input;
  };
  std::vector<Task> tasks;
  for (const GradientProduct& p : products) {
    for (int64_t output = 0; output < p.g.cols; output += kOutputs) {
      for (int64_t input = 0; input < p.x.cols; input += kInputs) tasks.push_back({&p, output, input});
    }
  }
  pool_.run(static_cast<int64_t>(tasks.size()), [&](int64_t index, int worker) {
    const auto [p, output, input] = tasks[static_cast<size_t>(index)];
    const int64_t outputs = std::min(kOutputs, p->g.cols - output);
    const int64_t inputs = std::min(kInputs, p->x.cols - input);
    constexpr int64_t kStride = kInputs + kPad;
    float* a = worker_scratch(worker, kGradientRun * (kOutputs + kInputs) + kOutputs * kStride);
    float* b = a + kGradientRun * kOutputs;
    float* acc = b + kGradientRun * kInputs;
    for (int64_t run = p->begin; run < p->end; run += kGradientRun) {
      const int64_t rows = std::min(kGradientRun, p->end - run);
      turn(kernels, p->g.row(run) + output, p->g.stride, rows, outputs, a);
      cut_panels(p->x.row(run) + input, p->x.stride, rows, inputs, b);
      std::memset(acc, 0, sizeof(float) * static_cast<size_t>(outputs * kStride));
      Tile tile;
      tile.rows = outputs;
      tile.panels = (inputs + kPanel - 1) / kPanel;
      tile.k = rows;
      tile.a = a;
      tile.a_row = kGradientRun;
      tile.b = b;
      tile.b_panel = rows * kPanel;
      tile.acc = acc;
      tile.acc_row = kStride;
      kernels.multiply(tile);
      for (int64_t o = 0; o < outputs; ++o) {
        float* grad = p->grad + (output + o) * p->stride + input;
        for (int64_t i = 0; i < inputs; ++i) grad[i] += acc[o * kStride + i];
      }
    }
  });
}

}  // namespace at_moe
