// Backward of a linear group (contract: backend/ops/linear.h) in four launches, three of products (cuda/product.h):
//   u_m = g_m B_m into dh                                   [N, S]       per segment and module
//   dgate[j] += Σ u scale h over the columns of gate j; dh = u ⊙ scale ⊙ gate    32 rows per block
//   dx = Σ_m g_m W_m + dh A_cat                             [N, d_in]    one chain: modules, then segments
//   dA += dhᵀ x, dB_m += g_mᵀ hg_m, dW_m += g_mᵀ x          in runs of kGradientRun rows
// Products read dh in the type of the activations, which the second launch writes beside it. Segments that add to one
// gradient are terms of one product, in their order. dbias: a thread per column.
// Many experts of which rows select few: u is gathered (cuda/gathered.h), and dx passes over blocks of dh that are zeros.
#include <algorithm>
#include <map>

#include "backend/segments.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/gathered.h"
#include "cuda/number.h"
#include "cuda/product.h"
#include "cuda/weight.h"

namespace at_moe::cuda {

namespace {

constexpr int kInputSlot = 0, kGatedSlot = 1, kGradientSlot = 2;
constexpr int kGateRows = 32, kGateColumns = 32, kGateWarps = 8;
constexpr int kBiasThreads = 64;

struct GateSegment {
  int64_t begin, end, columns;
  const int32_t* gate_column;
  const float* scale;
};

template <typename T>
struct GateRows {
  float* dh;
  T* operand;
  const float *h, *routing;
  float* drouting;  // null: not wanted
  int64_t dh_stride, operand_stride, h_stride, routing_stride, drouting_stride;
};

// Warps read and write columns of many rows; then each thread of the first warp adds the columns of one row in order.
template <typename T>
__global__ void __launch_bounds__(32 * kGateWarps, 1) apply_gates(const GateSegment* segments, GateRows<T> rows) {
  const GateSegment segment = segments[blockIdx.y];
  const int64_t row0 = segment.begin + int64_t{blockIdx.x} * kGateRows;
  if (row0 >= segment.end) return;
  const int count = static_cast<int>(segment.end - row0 < kGateRows ? segment.end - row0 : kGateRows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool adds = rows.drouting && warp == 0 && lane < count;
  float* own = adds ? rows.drouting + (row0 + lane) * rows.drouting_stride : nullptr;
  __shared__ float slopes[kGateRows][kGateColumns + 1];
  int32_t gate = segment.gate_column[0];
  float slope = 0;
  for (int64_t first = 0; first < segment.columns; first += kGateColumns) {
    const int64_t column = first + lane;
    if (column < segment.columns) {
      for (int n = warp; n < count; n += kGateWarps) {
        const int64_t row = row0 + n;
        float& dh = rows.dh[row * rows.dh_stride + column];
        const float gate_of_row = rows.routing[row * rows.routing_stride + segment.gate_column[column]];
        const float scaled = gate_of_row == 0 ? 0 : dh * segment.scale[column];
        if (rows.drouting) slopes[n][lane] = gate_of_row == 0 ? 0 : scaled * rows.h[row * rows.h_stride + column];
        dh = scaled * gate_of_row;
        rows.operand[row * rows.operand_stride + column] = narrow<T>(dh);
      }
    }
    if (!rows.drouting) continue;
    __syncthreads();
    for (int j = 0; adds && j < kGateColumns && first + j < segment.columns; ++j) {
      const int32_t next = segment.gate_column[first + j];
      if (next != gate) {
        own[gate] += slope;
        gate = next;
        slope = 0;
      }
      slope += slopes[lane][j];
    }
    __syncthreads();
  }
  if (adds) own[gate] += slope;
}

template <typename T>
__global__ void __launch_bounds__(kBiasThreads)
    add_bias_gradient(const T* g, int64_t stride, int64_t rows, int64_t cols, float* bias) {
  const int64_t col = int64_t{blockIdx.x} * kBiasThreads + threadIdx.x;
  if (col >= cols) return;
  float total = bias[col];
  for (int64_t run = 0; run < rows; run += kGradientRun) {
    const int64_t end = run + kGradientRun < rows ? run + kGradientRun : rows;
    float sum = 0;
#pragma unroll 8
    for (int64_t n = run; n < end; ++n) sum += widen(g[n * stride + col]);
    total += sum;
  }
  bias[col] = total;
}

std::vector<Product> shrink_gradients(const LinearBackward& args, std::span<const MixtureSegment> segments,
                                      std::span<const Matrix> g) {
  std::vector<Product> products;
  for (const MixtureSegment& segment : segments) {
    if (segment.gathered) continue;
    for (size_t m = 0; m < g.size(); ++m) {
      const AdapterStack::Module& adapter = segment.stack->modules[m];
      if (!adapter.b) continue;
      Product& product = products.emplace_back();
      product.begin = segment.begin;
      product.end = segment.end;
      product.cols = adapter.b->cols();
      product.terms.push_back({g[m], matrix_of(*adapter.b), segment.begin, segment.end});
      product.out = args.dh.col_range(adapter.first, product.cols);
    }
  }
  return products;
}

// The module that a block of a stack belongs to.
size_t module_of(const AdapterStack& stack, const AdapterStack::Block& block) {
  size_t found = 0;
  for (size_t m = 0; m < stack.modules.size(); ++m) {
    if (stack.modules[m].b && stack.modules[m].first <= block.first) found = m;
  }
  return found;
}

// The same of gathered segments; appends the lists of rows.
std::vector<GatheredProduct> gathered_gradients(std::span<const MixtureSegment> segments, std::span<const Matrix> g,
                                                std::vector<RowList>& lists) {
  std::vector<GatheredProduct> products;
  for (const MixtureSegment& segment : segments) {
    if (!segment.gathered) continue;
    const AdapterStack& stack = *segment.stack;
    std::map<int32_t, size_t> list_of;
    for (const AdapterStack::Block& block : stack.blocks) {
      const auto [own, added] = list_of.emplace(block.gate, lists.size());
      if (added)
        lists.push_back({static_cast<int>(segment.begin), static_cast<int>(segment.end), block.gate, nullptr, nullptr});
      const size_t m = module_of(stack, block);
      const ColumnRun run{static_cast<int>(block.first), static_cast<int>(block.count), 0};
      const int b_first = static_cast<int>(block.first - stack.modules[m].first);
      products.push_back({own->second, g[m], matrix_of(*stack.modules[m].b), b_first, {run}, nullptr});
    }
  }
  return products;
}

// What is open of dh, by gathered segment.
std::vector<OpenBlocks> open_gradients(std::span<const MixtureSegment> segments) {
  std::vector<OpenBlocks> maps;
  for (const MixtureSegment& segment : segments) {
    if (!segment.gathered) continue;
    OpenBlocks& map = maps.emplace_back();
    map.begin = static_cast<int>(segment.begin);
    map.end = static_cast<int>(segment.end);
    map.cols = static_cast<int>(segment.stack->a->rows());
    map.gate_column = segment.stack->gate_column;
  }
  return maps;
}

std::vector<Product> input_gradients(const LinearBackward& args, std::span<const MixtureSegment> segments,
                                     std::span<const OpenBlocks> maps, std::span<const Matrix> g, const Matrix& dh,
                                     int64_t rows) {
  std::vector<Product> products;
  const auto start = [&](const Matrix& out) -> Product& {
    Product& product = products.emplace_back();
    product.end = rows;
    product.cols = out.cols;
    product.out = out;
    return product;
  };
  const auto add_adapters = [&](Product& product) {
    auto map = maps.begin();
    for (const MixtureSegment& segment : segments) {
      const Matrix a = matrix_of(*segment.stack->a);
      Term& term = product.terms.emplace_back();
      term.a = dh.col_range(0, a.rows);
      term.b = a;
      term.begin = segment.begin;
      term.end = segment.end;
      if (segment.gathered) term.open = map++->open;
    }
  };
  if (args.dx) {
    Product& product = start(args.dx);
    if (args.accumulate_dx) product.add = args.dx;
    for (size_t m = 0; m < g.size(); ++m) {
      product.terms.push_back({g[m], view_of(*args.modules[m].weight), 0, rows});
    }
    if (!args.shrink_dx) add_adapters(product);
  }
  if (args.shrink_dx) add_adapters(start(args.shrink_dx));
  return products;
}

// grad += gᵀ x
struct WeightGradient {
  size_t g, x;  // indices of operands
  int64_t begin, end;
  float* grad;
};

std::vector<Product> gradient_products(std::span<const WeightGradient> gradients, std::span<const Matrix> operands) {
  std::vector<Product> products;
  for (const WeightGradient& gradient : gradients) {
    const Matrix &g = operands[gradient.g], &x = operands[gradient.x];
    auto own = std::find_if(products.begin(), products.end(),
                            [&](const Product& product) { return product.out.data == gradient.grad; });
    if (own == products.end()) {
      own = products.emplace(products.end());
      own->end = g.cols;
      own->cols = x.cols;
      own->out = matrix(gradient.grad, g.cols, x.cols);
    }
    const int64_t count = gradient.end - gradient.begin;
    own->terms.push_back({g.row_range(gradient.begin, count), x.row_range(gradient.begin, count), 0, g.cols});
  }
  return products;
}

}  // namespace

void CudaBackend::backward(const LinearBackward& args) {
  const int64_t rows = args.x ? args.x.rows : args.modules.front().y.rows;
  if (rows == 0) return;
  check_gradients(args);
  const std::vector<MixtureSegment> segments = segments_of(args.segments, rows);
  std::vector<Matrix> g;
  if (!segments.empty() || args.dx) {
    for (const LinearModule& module : args.modules) g.push_back(module.y);
    make_operands(kInputSlot, activation_, g);
  }
  Matrix dh;
  if (!segments.empty()) {
    require(args.dh && args.routing, "linear backward: adapters need dh and routing");
    require(!args.drouting || args.h, "linear backward: router gradients need h");
    multiply(Form::kNN, activation_, {}, shrink_gradients(args, segments, g));
    std::vector<RowList> lists;
    const std::vector<GatheredProduct> gathered = gathered_gradients(segments, g, lists);
    multiply_gathered(Form::kNN, lists, gathered, args.routing, {args.dh, {}, {}, {}});
    std::vector<GateSegment> gates;
    int64_t longest = 0, widest = 0;
    for (const MixtureSegment& segment : segments) {
      const AdapterStack& stack = *segment.stack;
      gates.push_back({segment.begin, segment.end, stack.a->rows(), stack.gate_column, stack.scale});
      longest = std::max(longest, segment.end - segment.begin);
      widest = std::max(widest, operand_cols(stack.a->rows(), activation_));
    }
    const LaunchShape shape{
        dim3(static_cast<unsigned>((longest + kGateRows - 1) / kGateRows), static_cast<unsigned>(gates.size())),
        dim3(32 * kGateWarps)};
    dispatch(activation_, [&](auto element) {
      using T = decltype(element);
      dh = matrix(scratch<T>(kGatedSlot, rows * widest), rows, widest, activation_);
      launch(stream(), shape, apply_gates<T>, stage(std::span<const GateSegment>(gates)),
             GateRows<T>{args.dh.row(0), dh.row<T>(0), args.h.row(0), args.routing.row(0), args.drouting.row(0),
                         args.dh.stride, widest, args.h.stride, args.routing.stride, args.drouting.stride});
    });
  }
  std::vector<OpenBlocks> maps = open_gradients(segments);
  map_blocks(args.routing, maps);
  multiply(Form::kNN, activation_, {}, input_gradients(args, segments, maps, g, dh, rows));
  add_weight_gradients(args, g, dh);
  add_bias_gradients(args);
}

void CudaBackend::add_weight_gradients(const LinearBackward& args, std::span<const Matrix> g, const Matrix& dh) {
  // Where x is f32 beside activations of another type, as in exports, nothing may be lost.
  const DType type = args.x && args.x.dtype == DType::f32 ? DType::f32 : activation_;
  std::vector<Matrix> operands = {args.x, args.shrink_x};
  const size_t x = 0, shrink_x = args.shrink_x ? 1 : 0, first_g = 2;
  for (size_t m = 0; m < args.modules.size(); ++m) {
    operands.push_back(type == activation_ && !g.empty() ? g[m] : args.modules[m].y);
  }
  std::vector<WeightGradient> gradients;
  for (size_t m = 0; m < args.gradients.size(); ++m) {
    if (float* weight = args.gradients[m].weight) gradients.push_back({first_g + m, x, 0, args.x.rows, weight});
  }
  for (size_t s = 0; s < args.adapter_gradients.size(); ++s) {
    const AdapterSegment& segment = args.segments[s];
    const AdapterGradients& own = args.adapter_gradients[s];
    if (segment.begin >= segment.end || !segment.stack || !segment.stack->a) continue;
    if (own.a) {
      operands.push_back(dh.col_range(0, segment.stack->a->rows()));
      gradients.push_back({operands.size() - 1, shrink_x, segment.begin, segment.end, own.a});
    }
    for (size_t m = 0; m < own.b.size(); ++m) {
      const AdapterStack::Module& adapter = segment.stack->modules[m];
      if (!own.b[m] || !adapter.b) continue;
      operands.push_back(args.hg.col_range(adapter.first, adapter.b->cols()));
      gradients.push_back({first_g + m, operands.size() - 1, segment.begin, segment.end, own.b[m]});
    }
  }
  if (gradients.empty()) return;
  make_operands(kGradientSlot, type, operands);
  multiply(Form::kTN, type, {}, gradient_products(gradients, operands));
}

void CudaBackend::add_bias_gradients(const LinearBackward& args) {
  for (size_t m = 0; m < args.gradients.size(); ++m) {
    const Matrix& g = args.modules[m].y;
    float* bias = args.gradients[m].bias;
    if (!bias) continue;
    const LaunchShape shape{dim3(static_cast<unsigned>((g.cols + kBiasThreads - 1) / kBiasThreads)),
                            dim3(kBiasThreads)};
    dispatch(g.dtype, [&](auto element) {
      using T = decltype(element);
      launch(stream(), shape, add_bias_gradient<T>, g.row<T>(0), g.stride, g.rows, g.cols, bias);
    });
  }
}

}  // namespace at_moe::cuda
