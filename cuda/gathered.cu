// Gathered products (cuda/gathered.h). N rows of which an expert's n_e select it, R = Σ r ranks, k inputs: 2 Σ n_e r_e k
// flops instead of 2 N R k, an E / top_k-th, and for each 64 of its rows (64 + r_e) k operands read.
// A tile is 64 rows of one list by 64 columns: the modules of a stack share x, and so do an expert's columns in them. The
// lists' lengths are known to the device alone: as many blocks as are resident share out the tiles, which a warp finds by
// adding the lists up. Warps whose rows or columns are outside of what the tile has multiply nothing.
// The chain of an element over k is that of cuda/product_tile.cuh, so its bits are those of the ungathered product.
#include "cuda/gathered.h"

#include <algorithm>
#include <type_traits>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/product_tile.cuh"

namespace at_moe::cuda {

namespace {

using Shape = TileShape<64, 64, 128, 4, 2, 4>;
constexpr int kBlocksPerMultiprocessor = 2;

struct GatheredRecord {
  const int32_t *rows, *count;
  Operand a, b;
  int k;
  int lead, cols;  // of the first `cols` columns of the tiles, the first `lead` are not the expert's
  int b_first, first_run;
  int32_t gate;
  const float* scale;
};

struct GatheredTable {
  const GatheredRecord* records;
  const ColumnRun* runs;
  int count;
  const float* routing;
  int64_t routing_stride;
  float *raw, *gated;
  void *operand, *rest;
  int64_t raw_stride, gated_stride, operand_stride, rest_stride;
};

__device__ int tiles_of(const GatheredRecord& record) {
  const int row_tiles = (*record.count + Shape::kRows - 1) / Shape::kRows;
  return row_tiles * ((record.cols + Shape::kCols - 1) / Shape::kCols);
}

struct Place {
  int record, tile;
};

// Tile `tile` of all, the same in every lane; record = count: there is none.
__device__ Place place_of(const GatheredTable& table, int tile) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < table.count; first += 32) {
    const int own = first + lane < table.count ? tiles_of(table.records[first + lane]) : 0;
    int until = own;
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, until, step);
      if (lane >= step) until += before;
    }
    if (const unsigned behind = __ballot_sync(~0u, until > tile)) {
      const int found = __ffs(behind) - 1;
      return {first + found, tile - __shfl_sync(~0u, until - own, found)};
    }
    tile -= __shfl_sync(~0u, until, 31);
  }
  return {table.count, 0};
}

// Column n of an expert among its runs.
struct Column {
  int at, operand;
};
__device__ Column column_of(const ColumnRun* run, int n) {
  for (; n >= run->count; ++run) n -= run->count;
  return {run->first + n, run->operand + n};
}

template <typename T, Form form>
__device__ void multiply_tile(const GatheredTable& table, const GatheredRecord& record, int row0, int col0) {
  using Tile = ProductTile<T, form, Shape>;
  using A = typename Tile::A;
  using B = typename Tile::B;
  constexpr int kAhead = Shape::kStages - 1;

  const int rows = *record.count - row0, cols = record.cols - col0;
  const ColumnRun* runs = table.runs + record.first_run;
  T* stages = shared_memory<T>();
  int a_lines[A::kCopies], b_lines[B::kCopies];
#pragma unroll
  for (int n = 0; n < A::kCopies; ++n) {
    const int line = threadIdx.x / A::kLinePieces + n * A::kLineStep;
    a_lines[n] = line < rows ? record.rows[row0 + line] : -1;
  }
  if constexpr (!B::kTransposed) {
#pragma unroll
    for (int n = 0; n < B::kCopies; ++n) {
      const int line = threadIdx.x / B::kLinePieces + n * B::kLineStep;
      b_lines[n] = line < cols ? column_of(runs, col0 + line).at : -1;
    }
  }
  const auto copy = [&](int step, int index) {
    const int k = step * Tile::kDepth;
    if (k < record.k) {
      T* stage = stages + index * Tile::kStage;
      A::gather(stage, record.a, a_lines, k, record.k);
      if constexpr (B::kTransposed) {
        const int first = record.b_first + col0;
        B::copy(stage + A::kElements, record.b, first, 0, record.b_first + record.cols, k, record.k);
      } else {
        B::gather(stage + A::kElements, record.b, b_lines, k, record.k);
      }
    }
    cp_async_commit();
  };

  typename Tile::Accumulators acc = {};
  const int warp = threadIdx.x / 32;
  const bool multiplies =
      warp % Shape::kWarpRows * Tile::kWarpRows < rows && warp / Shape::kWarpRows * Tile::kWarpCols < cols;
  for (int stage = 0; stage < kAhead; ++stage) copy(stage, stage);
  for (int step = 0, stage = 0; step * Tile::kDepth < record.k; ++step) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();
    copy(step + kAhead, stage == 0 ? kAhead : stage - 1);
    const T* a = stages + stage * Tile::kStage;
    if (multiplies) Tile::template multiply<B>(acc, a, a + A::kElements, record.k - step * Tile::kDepth);
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }
  if (!multiplies) return;
  Tile::visit_pairs(acc, 0, 0, [&](int i, int j, const float* sums) {
    if (i >= rows) return;
    const int64_t row = record.rows[row0 + i];
    const float gate = record.scale ? table.routing[row * table.routing_stride + record.gate] : 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (j + e >= cols || col0 + j + e < record.lead) continue;
      const Column column = column_of(runs, col0 + j + e - record.lead);
      const float sum = sums[e] + 0.0f;  // of zeros: +0
      if (table.raw) table.raw[row * table.raw_stride + column.at] = sum;
      if (!record.scale) continue;
      const float value = sum * gate * record.scale[column.at];
      if (table.gated) table.gated[row * table.gated_stride + column.at] = value;
      static_cast<T*>(table.operand)[row * table.operand_stride + column.operand] = narrow<T>(value);
      if (!table.rest) continue;
      static_cast<T*>(table.rest)[row * table.rest_stride + column.operand] = narrow<T>(lost_in<T>(value));
    }
  });
}

template <typename T, Form form>
__global__ void __launch_bounds__(Shape::kThreads, kBlocksPerMultiprocessor) multiply_gathered(GatheredTable table) {
  for (int tile = static_cast<int>(blockIdx.x);; tile += static_cast<int>(gridDim.x)) {
    const Place place = place_of(table, tile);
    if (place.record == table.count) return;
    const GatheredRecord& record = table.records[place.record];
    const int col_tiles = (record.cols + Shape::kCols - 1) / Shape::kCols;
    multiply_tile<T, form>(table, record, place.tile / col_tiles * Shape::kRows, place.tile % col_tiles * Shape::kCols);
    __syncthreads();  // the stages are filled again
  }
}

}  // namespace

void CudaBackend::multiply_gathered(Form form, std::span<RowList> lists, std::span<const GatheredProduct> products,
                                    const Matrix& routing, const GatheredResults& results) {
  if (products.empty()) return;
  list_rows(routing, lists);
  std::vector<GatheredRecord> records;
  std::vector<ColumnRun> runs;
  int64_t most = 0;
  const int64_t piece = 16 / static_cast<int64_t>(size_of(activation_));
  for (const GatheredProduct& product : products) {
    require(is_operand(product.a, activation_) && is_operand(product.b, activation_), "gathered: not an operand");
    const RowList& list = lists[product.list];
    GatheredRecord record{};
    record.rows = list.rows;
    record.count = list.count;
    record.a = {product.a.data, product.a.stride};
    record.b = {product.b.data, product.b.stride};
    record.k = static_cast<int>(product.a.cols);
    record.lead = static_cast<int>(product.b_first % piece);
    record.b_first = product.b_first - record.lead;
    record.cols = record.lead;
    for (const ColumnRun& run : product.runs) record.cols += run.count;
    record.first_run = static_cast<int>(runs.size());
    record.gate = list.gate;
    record.scale = product.scale;
    runs.insert(runs.end(), product.runs.begin(), product.runs.end());
    records.push_back(record);
    most +=
        (list.end - list.begin + Shape::kRows - 1) / Shape::kRows * ((record.cols + Shape::kCols - 1) / Shape::kCols);
  }
  const int64_t resident = int64_t{kBlocksPerMultiprocessor} * runtime_->limits().multiprocessors;
  GatheredTable table{};
  table.records = stage(std::span<const GatheredRecord>(records));
  table.runs = stage(std::span<const ColumnRun>(runs));
  table.count = static_cast<int>(records.size());
  table.routing = routing.row(0);
  table.routing_stride = routing.stride;
  table.raw = results.raw.row(0);
  table.raw_stride = results.raw.stride;
  table.gated = results.gated.row(0);
  table.gated_stride = results.gated.stride;
  table.operand = results.operand.data;
  table.operand_stride = results.operand.stride;
  table.rest = results.rest.data;
  table.rest_stride = results.rest.stride;
  dispatch(activation_, [&](auto element) {
    using T = decltype(element);
    const auto launch_form = [&](auto chosen) {
      constexpr Form kForm = decltype(chosen)::value;
      launch(stream(),
             {dim3(static_cast<unsigned>(std::min(most, resident))), dim3(Shape::kThreads),
              ProductTile<T, kForm, Shape>::kSharedBytes},
             cuda::multiply_gathered<T, kForm>, table);
    };
    if (form == Form::kNT) launch_form(std::integral_constant<Form, Form::kNT>());
    else launch_form(std::integral_constant<Form, Form::kNN>());
  });
}

}  // namespace at_moe::cuda
