// The kernel behind cuda/product.h on sm_90a, for f16 and bf16. A block has one tile after another, by tickets, so that early
// tiles are always taken by blocks that run. Its first warp keeps a ring of kStages stages filled: the next 64 values of k of
// both operands, copied by tensor maps, which also give zeros for rows outside of a term. Each further warpgroup multiplies 64
// rows by all columns of the tile. A stage comes with a note of what it is, so the multiplying side knows no terms.
//   kTN   the runs are added in registers to what `out` held
// The order of an element's sum is that of its terms and of k in steps of 16, whatever the shape of the tile.
#pragma once

#include <cstdint>

#include "backend/ops/linear.h"
#include "cuda/hopper.h"
#include "cuda/product_epilogue.cuh"

namespace at_moe::cuda {

struct TensorTerm {
  int begin, end, k;
  bool late;
  Gates gates;
};

struct TensorTable {
  const TensorMap* maps;  // of a and b of each term
  const ProductRecord* products;
  const TensorTerm* terms;
  int product_count, term_count, tiles;
  int early_tiles;     // 0: no term is late
  uint32_t* counters;  // tickets drawn, warps that finished early tiles; zero at the start
};

template <int rows, int cols, int stages>
struct TensorShape {
  static constexpr int kRows = rows, kCols = cols, kStages = stages;
  static constexpr int kMultipliers = rows / 64, kThreads = 128 * (1 + kMultipliers);
};

// kExtent rows (of m or n) by kDepth values of k in shared memory, as boxes of tensor maps: lines along k, or along the rows
// when transposed, then 64 rows in each box.
template <bool transposed, int kExtent>
struct TensorOperand {
  static constexpr bool kTransposed = transposed;
  static constexpr int kDepth = 64, kStep = 16, kLineBytes = 128, kBytes = kExtent * kLineBytes;
  static constexpr int kBoxRows = kTransposed ? kDepth : kExtent, kBoxes = kTransposed ? kExtent / kBoxCols : 1;

  __device__ static void copy(unsigned char* to, const TensorMap* map, int row, int k, uint64_t* barrier) {
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) {
      if constexpr (kTransposed) copy_box(to + i * kBoxRows * kLineBytes, map, row + i * kBoxCols, k, barrier);
      else copy_box(to, map, k, row, barrier);
    }
  }

  // The matrix descriptor of wgmma for the rows from `row` on, a multiple of 64, and a step of k.
  __device__ static uint64_t descriptor(const unsigned char* operand, int row, int step) {
    constexpr uint64_t kSwizzle128 = 1;
    constexpr int kLeading = kBoxRows * kLineBytes, kStride = 8 * kLineBytes;
    const uint32_t start =
        shared_address(operand) + row * kLineBytes + step * (kTransposed ? kStep * kLineBytes : kStep * 2);
    return (start & 0x3FFFF) >> 4 | uint64_t{(kTransposed ? kLeading : 16) >> 4} << 16 | uint64_t{kStride >> 4} << 32 |
           kSwizzle128 << 62;
  }
};

// Has a row of [begin, end) a gate that is not zero in columns [first, last)? Asked by a whole warp.
__device__ inline bool warp_finds_open(const Gates& gates, int begin, int end, int first, int last) {
  int32_t before = -1;
  for (int n = first; n < last; ++n) {
    const int32_t column = gates.column[n];
    if (column == before) continue;
    before = column;
    bool open = false;
    for (int row = begin + static_cast<int>(threadIdx.x) % 32; row < end; row += 32) {
      open |= gates.routing[row * gates.stride + column] != 0;
    }
    if (__any_sync(~0u, open)) return true;
  }
  return false;
}

template <typename T, Form form, typename Shape>
struct TensorProduct {
  using A = TensorOperand<form == Form::kTN, Shape::kRows>;
  using B = TensorOperand<form != Form::kNT, Shape::kCols>;
  static constexpr int kDepth = A::kDepth, kStages = Shape::kStages, kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kWarps = 4 * Shape::kMultipliers;  // that multiply
  static_assert(kGradientRun % kDepth == 0);

  struct Note {
    int tile;  // -1: there is no more
    bool multiplies, ends_run, ends_tile;
  };

  // Behind the stages, which begin at a multiple of the swizzle's period.
  struct Control {
    uint64_t full[kStages], empty[kStages];
    Note notes[kStages];
  };
  static constexpr int kPeriod = 1024;
  static constexpr size_t kSharedBytes = kPeriod + size_t{kStages} * kStageBytes + sizeof(Control);
  static_assert(kSharedBytes <= size_t{227} << 10);

  struct Shared {
    unsigned char* stages;
    Control* control;

    __device__ Shared() {
      unsigned char* begin = shared_memory<unsigned char>();
      stages = begin + (kPeriod - shared_address(begin) % kPeriod) % kPeriod;
      control = reinterpret_cast<Control*>(stages + kStages * kStageBytes);
    }
    __device__ unsigned char* a(int stage) const { return stages + stage * kStageBytes; }
    __device__ unsigned char* b(int stage) const { return a(stage) + A::kBytes; }
  };

  // The stages in turn, and the parity of the round.
  struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void advance() {
      if (++stage < kStages) return;
      stage = 0;
      parity ^= 1;
    }
  };

  struct Place {
    const ProductRecord* product;
    int row, col;

    __device__ Place(const TensorTable& table, int tile) {
      product = &product_of(table.products, table.product_count, tile);
      row = product->begin + (tile - product->first_tile) % product->row_tiles * Shape::kRows;
      col = (tile - product->first_tile) / product->row_tiles * Shape::kCols;
    }
  };

  // What a tile has to multiply: kDepth values of a term at a time. Of few rows, where reading weights is what they wait
  // for, what no row selects is left out.
  class Steps {
   public:
    __device__ Steps(const TensorTable& table, const Place& place)
        : term_(table.terms + place.product->first_term), end_(term_ + place.product->terms), row_(place.row) {
      const ProductRecord& product = *place.product;
      if (kSelects && product.gates.column && !product.raw.data &&
          !warp_finds_open(product.gates, row_, min(row_ + Shape::kRows, product.end), place.col,
                           min(place.col + Shape::kCols, product.cols)))
        term_ = end_;
      skip();
    }
    __device__ bool valid() const { return term_ < end_; }
    __device__ const TensorTerm& term() const { return *term_; }
    __device__ int k() const { return k_; }
    __device__ bool ends_run() const { return k_ + kDepth >= term_->k || (k_ + kDepth) % kGradientRun == 0; }
    __device__ void advance() {
      k_ += kDepth;
      skip();
    }

   private:
    static constexpr bool kSelects = form == Form::kNT && Shape::kRows <= 64;

    __device__ bool is_needed() const {
      if (k_ >= term_->k || term_->begin >= row_ + Shape::kRows || term_->end <= row_) return false;
      if (!kSelects || !term_->gates.column) return true;
      return warp_finds_open(term_->gates, max(row_, term_->begin), min(row_ + Shape::kRows, term_->end), k_,
                             min(k_ + kDepth, term_->k));
    }
    __device__ void skip() {
      while (valid() && !is_needed()) {
        k_ += kDepth;
        if (k_ < term_->k) continue;
        ++term_;
        k_ = 0;
      }
    }

    const TensorTerm *term_, *end_;
    int row_, k_ = 0;
  };

  __device__ static void wait_for_early_tiles(const TensorTable& table) {
    const auto all = static_cast<uint32_t>(table.early_tiles * kWarps);
    while (load_acquire(&table.counters[1]) < all) spin_pause();
    async_proxy_fence();
  }

  // By one warp; its first lane copies. Maps are read from global memory, as many as a launch has terms.
  __device__ static void produce(const TensorTable& table, const Shared& shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = lane; i < 2 * table.term_count; i += 32) tensor_map_acquire(table.maps + i);
    __syncwarp();
    Ring ring;
    bool waited = false;
    const auto fill = [&](const Note& note, const Place* place, const Steps* step) {
      barrier_wait(&shared.control->empty[ring.stage], ring.parity ^ 1);
      if (lane == 0) {
        uint64_t* full = &shared.control->full[ring.stage];
        shared.control->notes[ring.stage] = note;
        if (note.multiplies) {
          const TensorTerm& term = step->term();
          const TensorMap* maps = table.maps + 2 * (&term - table.terms);
          barrier_arrive_expect(full, kStageBytes);
          B::copy(shared.b(ring.stage), maps + 1, place->col, step->k(), full);
          if (term.late && !waited) wait_for_early_tiles(table);
          waited |= term.late;
          A::copy(shared.a(ring.stage), maps, place->row - term.begin, step->k(), full);
        } else {
          barrier_arrive(full);
        }
      }
      ring.advance();
    };
    for (;;) {
      int tile = lane == 0 ? static_cast<int>(atomicAdd(&table.counters[0], 1u)) : 0;
      tile = __shfl_sync(~0u, tile, 0);
      if (tile >= table.tiles) break;
      const Place place(table, tile);
      Steps next(table, place);
      do {
        const Steps step = next;
        const bool multiplies = step.valid();
        if (multiplies) next.advance();
        const bool ends_tile = !next.valid();
        const bool ends_run = ends_tile || (form == Form::kTN && step.ends_run());
        fill({tile, multiplies, ends_run, ends_tile}, &place, &step);
      } while (next.valid());
    }
    fill({-1, false, true, true}, nullptr, nullptr);
  }

  // f(row, column, the sums of it and of the next column) of the thread's part of 64 rows.
  template <typename F>
  __device__ static void visit_pairs(float (&sums)[Shape::kCols / 2], int row0, int col0, F f) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int row = row0 + thread / 32 * 16 + thread % 32 / 4, col = col0 + thread % 4 * 2;
#pragma unroll
    for (int j = 0; j < Shape::kCols / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) f(row + 8 * i, col + 8 * j, &sums[4 * j + 2 * i]);
    }
  }

  __device__ static void release(const Shared& shared, int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&shared.control->empty[stage]);
  }

  // Adds stages up to the end of the run. A stage is given back when the products that read it are done.
  __device__ static Note multiply_run(float (&sums)[Shape::kCols / 2], const Shared& shared, Ring& ring, int row) {
    Note note;
    int held = -1;
    accumulators_fence(sums);
    do {
      barrier_wait(&shared.control->full[ring.stage], ring.parity);
      note = shared.control->notes[ring.stage];
      if (note.multiplies) {
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDepth / A::kStep; ++step) {
          wgmma<T, Shape::kCols, A::kTransposed, B::kTransposed>(sums, A::descriptor(shared.a(ring.stage), row, step),
                                                                 B::descriptor(shared.b(ring.stage), 0, step));
        }
        wgmma_commit();
        wgmma_wait<1>();
      }
      if (held >= 0) release(shared, held);
      held = ring.stage;
      ring.advance();
    } while (!note.ends_run);
    wgmma_wait<0>();
    accumulators_fence(sums);
    release(shared, held);
    return note;
  }

  __device__ static void announce_early_tile(const TensorTable& table) {
    __threadfence();
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) add_release(&table.counters[1], 1);
  }

  // By a warpgroup, for the rows from `row` of the tile on.
  __device__ static void multiply(const TensorTable& table, const Shared& shared, int row) {
    Ring ring;
    for (;;) {
      barrier_wait(&shared.control->full[ring.stage], ring.parity);
      const int tile = shared.control->notes[ring.stage].tile;
      if (tile < 0) return;
      const Place place(table, tile);
      const ProductRecord& product = *place.product;
      const auto is_inside = [&](int at_row, int at_col) { return at_row < product.end && at_col < product.cols; };
      float sums[Shape::kCols / 2];
      if constexpr (form == Form::kTN) {
        float totals[Shape::kCols / 2];
        visit_pairs(totals, place.row + row, place.col, [&](int at_row, int at_col, float* pair) {
          float values[2] = {};
          if (is_inside(at_row, at_col)) load_pair<T>(values, product.out, at_row, at_col, product.cols);
          pair[0] = values[0];
          pair[1] = values[1];
        });
        bool more = true;
        while (more) {
#pragma unroll
          for (float& sum : sums) sum = 0;
          more = !multiply_run(sums, shared, ring, row).ends_tile;
#pragma unroll
          for (int i = 0; i < Shape::kCols / 2; ++i) totals[i] += sums[i];
        }
        visit_pairs(totals, place.row + row, place.col, [&](int at_row, int at_col, const float* pair) {
          const float values[2] = {pair[0], pair[1]};
          if (is_inside(at_row, at_col)) store_pair<T>(values, product.out, at_row, at_col, product.cols);
        });
      } else {
        visit_pairs(sums, place.row + row, place.col, [&](int, int at_col, float* pair) {
          pair[0] = product.bias && at_col < product.cols ? product.bias[at_col] : 0;
          pair[1] = product.bias && at_col + 1 < product.cols ? product.bias[at_col + 1] : 0;
        });
        multiply_run(sums, shared, ring, row);
        visit_pairs(sums, place.row + row, place.col, [&](int at_row, int at_col, const float* pair) {
          if (is_inside(at_row, at_col)) finish_pair<T>(product, at_row, at_col, pair);
        });
      }
      if (tile < table.early_tiles) announce_early_tile(table);
    }
  }

  __device__ static void run(const TensorTable& table) {
    const Shared shared;
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(&shared.control->full[stage], 1);
        barrier_init(&shared.control->empty[stage], kWarps);
      }
      barrier_init_fence();
    }
    __syncthreads();
    const int warpgroup = static_cast<int>(threadIdx.x) / 128;
    constexpr bool kMovesRegisters = Shape::kCols > 128 || form == Form::kTN;  // 128 sums a thread take more
    if (warpgroup == 0) {
      if constexpr (kMovesRegisters) registers_give<40>();
      if (threadIdx.x < 32) produce(table, shared);
    } else {
      if constexpr (kMovesRegisters) registers_take<232>();
      multiply(table, shared, (warpgroup - 1) * 64);
    }
  }
};

template <typename T, Form form, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) multiply_tensor_tiles(TensorTable table) {
  if constexpr (kHasWgmma) TensorProduct<T, form, Shape>::run(table);
}

}  // namespace at_moe::cuda
