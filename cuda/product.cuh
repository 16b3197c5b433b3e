// The sum behind cuda/product.h. A block has one tile of one product (cuda/product_tile.cuh): a pipeline of kStages copies
// of the operands in shared memory, filled by cp.async. What a tile has to wait for depends on its launch: one of tiles
// alone (below), or one of phases (cuda/phases.cu).
#pragma once

#include <cstdint>

#include "cuda/number.h"
#include "cuda/product_epilogue.cuh"
#include "cuda/product_tile.cuh"

namespace at_moe::cuda {

using Narrow = TileShape<16, 32, 256, 1, 4, 4>;  // decode: deep copies of few weight rows, bound by memory
using Middle = TileShape<64, 32, 128, 2, 2, 4>;  // batched decode, and where wide tiles would be too few
// Prefill and training; blocks need registers of their own.
template <bool has_blocks>
using Wide = TileShape<128, has_blocks ? 64 : 128, 64, 2, 4, 3>;

struct ProductTable {
  const ProductRecord* products;  // by first_tile
  const TermRecord* terms;
  int count;
};

// The tiles of a table as a phase (cuda/phase.h).
struct ProductPhase {
  ProductTable table;
  int64_t tiles;
  int operands_ready;  // phases to be done before `a` of terms that are not late can be read
  bool selects;        // gates can be read with it

  int64_t items() const { return tiles; }
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

// Adds tile `tile` of the table up, in the shared memory of the block. `waits` says when memory can be read:
//   operands()  returns when `a` of the terms that are not late can
//   late()      when that of late terms and all gates can
//   finish()    when all else can, and what the product writes is read by nobody before it
//   selects()   whether gates are worth waiting for: those of `operands()` can be read with it
// `has_blocks`: there may be weights of q8.
template <typename T, Form form, typename Shape, bool has_blocks, typename Waits>
__device__ inline void multiply_tile(const ProductTable& table, int tile, Waits& waits) {
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
  if (kSelects && product.gates.column && !product.raw.data && waits.selects()) {
    waits.operands();
    const int row_end = row0 + Shape::kRows < product.end ? row0 + Shape::kRows : product.end;
    needed_lines = 0;
    for (int n = 0; n < B::kLines / B::kLineStep; ++n) {
      const int col = col0 + threadIdx.x / B::kLinePieces + n * B::kLineStep;
      if (col < product.cols && is_open(product.gates, row0, row_end, col, col + 1)) needed_lines |= 1u << n;
    }
  }
  const auto copy_a = [&](const typename Tile::Cursor& at, int index) {
    const TermRecord& term = *at.term;
    A::copy(stages + index * Tile::kStage, term.a, row0, term.begin, term.end, at.k, term.k);
  };
  const auto copy_b = [&](const typename Tile::Cursor& at, int index) {
    const TermRecord& term = *at.term;
    T* to = stages + index * Tile::kStage + A::kElements;
    if (has_blocks && term.blocks.values) {
      const bool turned = B::kTransposed;
      return Tile::Blocks::copy(to, term.blocks, turned ? at.k : col0, turned ? col0 : at.k);
    }
    bool needs_column = true;
    if (kSelects && term.gates.column) {
      const int begin = row0 > term.begin ? row0 : term.begin;
      const int end = row0 + Shape::kRows < term.end ? row0 + Shape::kRows : term.end;
      const int first = at.k + threadIdx.x % B::kLinePieces * B::kPiece;
      needs_column = is_open(term.gates, begin, end, first, first + B::kPiece < term.k ? first + B::kPiece : term.k);
    }
    B::copy(to, term.b, col0, 0, product.cols, at.k, term.k, {needed_lines, needs_column});
  };

  // The first weights are on their way while the tile waits for the rows.
  int sent = 0;
  for (typename Tile::Cursor at = now; sent < kAhead && at.valid() && !at.term->late; at.advance()) copy_b(at, sent++);
  waits.operands();
  for (int stage = 0; stage < kAhead; ++stage) {
    if (ahead.valid()) {
      if (ahead.term->late) waits.late();
      copy_a(ahead, stage);
      if (stage >= sent) copy_b(ahead, stage);
      ahead.advance();
    }
    cp_async_commit();
  }
  for (int stage = 0; now.valid(); stage = stage + 1 == Shape::kStages ? 0 : stage + 1) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();
    if (ahead.valid()) {
      const int next = stage == 0 ? kAhead : stage - 1;
      if (ahead.term->late) waits.late();
      copy_a(ahead, next);
      copy_b(ahead, next);
      ahead.advance();
    }
    cp_async_commit();
    const T *a = stages + stage * Tile::kStage, *b = a + A::kElements;
    const int left = now.term->k - now.k;
    if (!has_blocks || !now.term->blocks.values) {
      Tile::template multiply<B>(acc, a, b, left, has_blocks ? Tile::kAllOpen : now.open);
    } else if constexpr (form == Form::kNT) {
      Tile::template multiply<typename Tile::Blocks>(acc, a, b, left);
    } else {
      T* wide = stages + Shape::kStages * Tile::kStage;
      Tile::Blocks::template widen<B::kLine>(wide, b);
      __syncthreads();
      Tile::template multiply<B>(acc, a, wide, left);
    }
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
  waits.finish();
  if constexpr (form != Form::kTN) {
    Tile::visit_pairs(acc, row0, col0, [&](int row, int col, const float* sums) {
      if (row < product.end && col < product.cols) finish_pair<T>(product, row, col, sums);
    });
  }
}

// Where terms are late, blocks draw tickets: the early tiles are taken first, by blocks that run and never wait, so the
// others may wait for them.
struct EarlyTiles {
  int count;           // 0: no term is late
  uint32_t* counters;  // tickets drawn, early tiles done; zero at the start
  bool waited = false;

  __device__ int draw() const {
    if (count == 0) return static_cast<int>(blockIdx.x);
    __shared__ int drawn;
    if (threadIdx.x == 0) drawn = static_cast<int>(atomicAdd(&counters[0], 1u));
    __syncthreads();
    return drawn;
  }
  __device__ void announce(int tile) const {
    if (tile >= count) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) add_release(&counters[1], 1);
  }

  __device__ bool selects() const { return true; }
  __device__ void operands() const {}
  __device__ void late() {
    if (waited) return;
    if (threadIdx.x == 0) {
      while (load_acquire(&counters[1]) < static_cast<uint32_t>(count)) spin_pause();
    }
    __syncthreads();
    waited = true;
  }
  __device__ void finish() const {}
};

template <typename T, Form form, typename Shape, bool has_blocks>
__global__ void __launch_bounds__(Shape::kThreads, 256 / Shape::kThreads * 2)
    multiply_tiles(ProductTable table, EarlyTiles early) {
  const int tile = early.draw();
  multiply_tile<T, form, Shape, has_blocks>(table, tile, early);
  early.announce(tile);
}

}  // namespace at_moe::cuda
