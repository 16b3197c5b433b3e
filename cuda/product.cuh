// The kernel behind cuda/product.h. A block has one tile of one product (cuda/product_tile.cuh): a pipeline of kStages
// copies of the operands in shared memory, filled by cp.async. Where terms are late, blocks draw tickets: the early tiles
// are taken first, by blocks that run and never wait, so the others may wait for them.
#pragma once

#include <cstdint>

#include "cuda/number.h"
#include "cuda/product_epilogue.cuh"
#include "cuda/product_tile.cuh"

namespace at_moe::cuda {

struct ProductTable {
  const ProductRecord* products;  // by first_tile
  const TermRecord* terms;
  int count;
  int early_tiles;     // 0: no term is late
  uint32_t* counters;  // tickets drawn, early tiles done; zero at the start
};

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

  const ProductRecord& product = product_of(table.products, table.count, tile);
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
    Tile::multiply(acc, stages + stage * Tile::kStage, now.term->k - now.k);
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
