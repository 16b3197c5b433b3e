// The kernel behind cuda/product.h. A block has one tile of one product (cuda/product_tile.cuh): a pipeline of kStages
// copies of the operands in shared memory, filled by cp.async. Where terms are late, blocks draw tickets: the early tiles
// are taken first, by blocks that run and never wait, so the others may wait for them.
#pragma once

#include <cstdint>

#include "cuda/number.h"
#include "cuda/product_tile.cuh"

namespace at_moe::cuda {

struct Target {
  void* data;
  int64_t stride;
  bool is_float, aligned;
};

struct ProductRecord {
  int begin, end, cols;
  int first_tile, row_tiles;
  int first_term, terms;
  const float* bias;
  Target out, add, raw, operand;
  Gates gates;
  const float* scale;
};

struct ProductTable {
  const ProductRecord* products;  // by first_tile
  const TermRecord* terms;
  int count;
  int early_tiles;     // 0: no term is late
  uint32_t* counters;  // tickets drawn, early tiles done; zero at the start
};

template <typename T>
__device__ inline void load_pair(float (&values)[2], const Target& from, int64_t row, int col, int cols) {
  if (from.is_float) {
    load_piece(values, static_cast<const float*>(from.data) + row * from.stride, col, cols, from.aligned);
  } else {
    load_piece(values, static_cast<const T*>(from.data) + row * from.stride, col, cols, from.aligned);
  }
}

template <typename T>
__device__ inline void store_pair(const float (&values)[2], const Target& to, int64_t row, int col, int cols) {
  if (to.is_float) store_piece(values, static_cast<float*>(to.data) + row * to.stride, col, cols, to.aligned);
  else store_piece(values, static_cast<T*>(to.data) + row * to.stride, col, cols, to.aligned);
}

// The epilogue of a run of kTN for two neighbouring elements.
__device__ inline void add_pair(const Target& out, int row, int col, int cols, const float* sums) {
  float* at = static_cast<float*>(out.data) + row * out.stride + col;
  if (out.aligned && col + 1 < cols) {
    float2 both = *reinterpret_cast<const float2*>(at);
    both.x += sums[0];
    both.y += sums[1];
    *reinterpret_cast<float2*>(at) = both;
  } else {
    at[0] += sums[0];
    if (col + 1 < cols) at[1] += sums[1];
  }
}

// The epilogue of two neighbouring elements.
template <typename T>
__device__ inline void finish_pair(const ProductRecord& product, int row, int col, const float* sums) {
  // The sum of a row that no term touched, or of zeros, is +0 whatever else was in the tile.
  float values[2] = {sums[0] + 0.0f, sums[1] + 0.0f};
  if (product.gates.column) {
    const float* routing = product.gates.routing + row * product.gates.stride;
    float gates[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      gates[e] = col + e < product.cols ? routing[product.gates.column[col + e]] : 0;
      if (gates[e] == 0) values[e] = 0;
    }
    if (product.raw.data) store_pair<T>(values, product.raw, row, col, product.cols);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (gates[e] != 0) values[e] = values[e] * gates[e] * product.scale[col + e];
    }
    if (product.operand.data) store_pair<T>(values, product.operand, row, col, product.cols);
  }
  if (product.add.data) {
    float more[2];
    load_pair<T>(more, product.add, row, col, product.cols);
    values[0] += more[0];
    values[1] += more[1];
  }
  store_pair<T>(values, product.out, row, col, product.cols);
}

__device__ inline const ProductRecord& product_of(const ProductTable& table, int tile) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.products[middle].first_tile <= tile) low = middle;
    else high = middle;
  }
  return table.products[low];
}

// Has a row of [begin, end) a gate that is not zero in columns [first, last)?
__device__ inline bool is_open(const Gates& gates, int begin, int end, int first, int last) {
  int32_t before = -1;
  for (int n = first; n < last; ++n) {
    const int32_t column = gates.column[n];
    if (column == before) continue;
    before = column;
    for (int row = begin; row < end; ++row) {
      if (gates.routing[row * gates.stride + column] != 0) return true;
    }
  }
  return false;
}

// Adds tile `tile` of the table up, in the shared memory of the block. `wait_for_late` returns when the operands of late
// terms can be read.
template <typename T, Form form, typename Shape, typename Wait>
__device__ void multiply_tile(const ProductTable& table, int tile, Wait wait_for_late) {
  using Tile = ProductTile<T, form, Shape>;
  using A = typename Tile::A;
  using B = typename Tile::B;
  constexpr int kAhead = Shape::kStages - 1;

  const ProductRecord& product = product_of(table, tile);
  const int row0 = product.begin + (tile - product.first_tile) % product.row_tiles * Shape::kRows;
  const int col0 = (tile - product.first_tile) / product.row_tiles * Shape::kCols;
  const TermRecord* terms = table.terms + product.first_term;
  T* stages = shared_memory<T>();

  typename Tile::Accumulators acc;
  Tile::visit_pairs(acc, row0, col0, [&](int, int col, float* sums) {
    sums[0] = product.bias && col < product.cols ? product.bias[col] : 0;
    sums[1] = product.bias && col + 1 < product.cols ? product.bias[col + 1] : 0;
  });

  typename Tile::Cursor now(terms, terms + product.terms, row0), ahead = now;
  // Reading weights is what few rows wait for: experts that none of them selects are left out.
  constexpr bool kSelects = form == Form::kNT && Shape::kRows <= 16;
  uint32_t needed_lines = ~0u;
  if (kSelects && product.gates.column && !product.raw.data) {
    const int row_end = row0 + Shape::kRows < product.end ? row0 + Shape::kRows : product.end;
    needed_lines = 0;
    for (int n = 0; n < B::kLines / B::kLineStep; ++n) {
      const int col = col0 + threadIdx.x / B::kLinePieces + n * B::kLineStep;
      if (col < product.cols && is_open(product.gates, row0, row_end, col, col + 1)) needed_lines |= 1u << n;
    }
  }
  bool waited = false;
  const auto copy_next = [&](int index) {
    if (ahead.valid()) {
      const TermRecord& term = *ahead.term;
      if (term.late && !waited) {
        wait_for_late();
        waited = true;
      }
      T* stage = stages + index * Tile::kStage;
      A::copy(stage, term.a, row0, term.begin, term.end, ahead.k, term.k);
      bool needs_column = true;
      if (kSelects && term.gates.column) {
        const int begin = row0 > term.begin ? row0 : term.begin;
        const int end = row0 + Shape::kRows < term.end ? row0 + Shape::kRows : term.end;
        const int first = ahead.k + threadIdx.x % B::kLinePieces * B::kPiece;
        needs_column = is_open(term.gates, begin, end, first, first + B::kPiece < term.k ? first + B::kPiece : term.k);
      }
      B::copy(stage + A::kElements, term.b, col0, 0, product.cols, ahead.k, term.k, {needed_lines, needs_column});
      ahead.advance();
    }
    cp_async_commit();
  };

  for (int stage = 0; stage < kAhead; ++stage) copy_next(stage);
  for (int stage = 0; now.valid(); stage = stage + 1 == Shape::kStages ? 0 : stage + 1) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();
    copy_next(stage == 0 ? kAhead : stage - 1);
    Tile::multiply(acc, stages + stage * Tile::kStage, now.term->k - now.k, now.open);
    if constexpr (form == Form::kTN) {
      if (now.ends_term() || (now.k + Tile::kDepth) % kGradientRun == 0) {
        Tile::visit_pairs(acc, row0, col0, [&](int row, int col, float* sums) {
          if (row < product.end && col < product.cols) add_pair(product.out, row, col, product.cols, sums);
          sums[0] = sums[1] = 0;
        });
      }
    }
    now.advance();
  }
  if constexpr (form != Form::kTN) {
    Tile::visit_pairs(acc, row0, col0, [&](int row, int col, const float* sums) {
      if (row < product.end && col < product.cols) finish_pair<T>(product, row, col, sums);
    });
  }
}

__device__ inline int draw_tile(const ProductTable& table) {
  if (table.early_tiles == 0) return static_cast<int>(blockIdx.x);
  __shared__ int drawn;
  if (threadIdx.x == 0) drawn = static_cast<int>(atomicAdd(&table.counters[0], 1u));
  __syncthreads();
  return drawn;
}

__device__ inline void announce_early_tile(const ProductTable& table) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) add_release(&table.counters[1], 1);
}

__device__ inline void wait_for_early_tiles(const ProductTable& table) {
  if (threadIdx.x == 0) {
    while (load_acquire(&table.counters[1]) < static_cast<uint32_t>(table.early_tiles)) spin_pause();
  }
  __syncthreads();
}

template <typename T, Form form, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 256 / Shape::kThreads * 2) multiply_tiles(ProductTable table) {
  const int tile = draw_tile(table);
  multiply_tile<T, form, Shape>(table, tile, [&] { wait_for_early_tiles(table); });
  if (tile < table.early_tiles) announce_early_tile(table);
}

}  // namespace at_moe::cuda
