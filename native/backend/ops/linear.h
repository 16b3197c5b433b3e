// Fused linear group: all linear modules that share one input x (q|k|v, o, gate|up, down, lm_head), with the adapters of
// each row's mixture as a K-extension. N rows, d_in inputs, S stacked ranks, module m has d_m outputs.
//
//   h  = x A_catᵀ                      [N, S]   raw shrink, A of all modules and experts stacked
//   hg = h ⊙ routing[:, gate_column] ⊙ scale    gate λρ w_e (or 1-λ), scale s_e
//   y_m = residual + W_m x + bias_m + B_m hg[:, first_m : first_m + rank_m]
//
// Order of summation of an output element: bias, then W over ascending inputs, then B over ascending ranks, then the
// residual, one float accumulator with fused multiply-adds; never dependent on the other rows. B reads hg in f32: a
// backend of 16 bits takes it as the sum of a rounded and a small part, one after the other. Row segments of different
// mixtures share a call. Where a row's gate is 0 its h, hg and dh are 0, and its dgate gets nothing: no gradient flows
// through the choice of the router. So products may skip such columns, row by row: adding 0 changes no bits.
//
// On the CPU, with kernels of bf16 pairs (cpu/kernels.h, AT_MOE_SIMD), what meets a weight of bf16 is the sum of two bf16
// values, within 2^-17 of x, hg, g or dh, and the products of 32 inputs join the accumulator in the order of these kernels:
// the same for any rows.
//
// A weight of q8 (core/q8.h) is its exact values s q; those of a stack may be of it where a backend takes them. On the CPU,
// what it reads, x or hg, is quantised once for all that read it: in blocks of 32 inputs t = max |x| / 127 and
// a = x · (127 / max |x|) rounded to the nearest, ties to even (zeros where max |x| < 2^-119, t is NaN where x is not finite),
// and a block joins the accumulator as fma(Σ a q · t, s, ·), the sum one of integers. So it is for any number of rows,
// training included; other weights read x itself, and backward is that of the x and hg which were given. With
// AT_MOE_CPU_Q8=f32 there, and on other devices where activations are f32, s q is multiplied as such, in the same chain.
// Where they are f16 or bf16, which do not hold s q but do hold q, each block of 32 inputs is summed from zero, over q
// alone, and joins the accumulator in f32 as s · sum. dx = g W takes W rounded to the type of the activations. dW of a W
// of q8 cannot be asked for; dA and dB can, as if quantising had a slope of 1.
//
// Backward, given g_m = dL/dy_m:
//   u_m = g_m B_m;  dhg = [u_m];  dh = dhg ⊙ gate ⊙ scale;  dgate[gate_column_j] += dhg_j scale_j h_j
//   dx (+)= Σ_m g_m W_m + dh A_cat;  dA += dhᵀ x;  dB_m += g_mᵀ hg_m;  dW_m += g_mᵀ x;  dbias_m += Σ_n g_m
// Weight gradients accumulate in f32; rows are summed in ascending order in runs of kGradientRun rows, the runs in order.
// Beside 16-bit activations each y, residual, g, dx and shrink_dx may be f32; what a product reads of it is rounded.
// Source: mixture-spec section 3 and the equations that follow from it.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/matrix.h"

namespace at_moe {

inline constexpr int64_t kGradientRun = 256;

// A [rows, cols] matrix in a layout of the backend's own. Rows = outputs.
class Weight {
 public:
  Weight(int64_t rows, int64_t cols, Storage storage) : rows_(rows), cols_(cols), storage_(storage) {}
  virtual ~Weight() = default;
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  Storage storage() const { return storage_; }
  virtual size_t bytes() const = 0;
  // The packed form where it lies in host memory, else empty.
  virtual std::span<const uint8_t> host_bytes() const { return {}; }

 private:
  int64_t rows_, cols_;
  Storage storage_;
};

// The adapters of one mixture for one linear group.
struct AdapterStack {
  struct Block {  // of columns that share a gate: the ranks of one expert in one module
    int32_t gate = 0;
    int64_t first = 0, count = 0;
  };
  struct Module {
    const Weight* b = nullptr;  // [d_m, rank_m], experts in order, the general adapter last; null: nothing targets it
    int64_t first = 0;          // first column of h
  };
  const Weight* a = nullptr;             // [S, d_in]; null: no expert targets the group
  const int32_t* gate_column = nullptr;  // [S] column of `routing`, device
  const float* scale = nullptr;          // [S] s_e, device
  std::vector<Block> blocks;             // of all columns, ascending
  std::vector<Module> modules;           // one per module of the group
  bool selective = false;                // rows are expected to select few of many experts; changes no bits
};

struct AdapterSegment {
  int64_t begin = 0, end = 0;           // rows of x
  const AdapterStack* stack = nullptr;  // null: base only
};

struct LinearModule {
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // [d_m] or null
  Matrix y;                     // [N, d_m]
};

struct LinearForward {
  Matrix x;         // [N, d_in]
  Matrix shrink_x;  // [N, d_in] what A sees, when dropout makes it differ from x; else empty
  std::span<const LinearModule> modules;
  std::span<const AdapterSegment> segments;  // ascending, disjoint; rows outside of them are base only
  Matrix routing;                            // [N, ·] f32, see router.h
  Matrix h;                                  // [N, >= S] f32 raw, kept for backward; may be empty
  Matrix hg;                                 // [N, >= S] f32 gated, kept if h is, else scratch; needed for a stack
  Matrix residual;                           // [N, d_0] or empty; only for groups of one module; may be y itself
};

struct LinearGradients {    // of one module; f32 row-major, added to; null = not trained
  float* weight = nullptr;  // [d_m, d_in]
  float* bias = nullptr;    // [d_m]
};

struct AdapterGradients {  // of one segment's stack; added to; null = not trained
  float* a = nullptr;      // [S, d_in]
  std::vector<float*> b;   // per module [d_m, rank_m]
};

struct LinearBackward {
  Matrix x, shrink_x, h, hg, routing;     // as in forward
  std::span<const LinearModule> modules;  // y holds g_m = dL/dy_m
  std::span<const AdapterSegment> segments;
  Matrix dx;                   // [N, d_in], or empty when not wanted
  bool accumulate_dx = false;  // dx += instead of =
  Matrix shrink_dx;            // [N, d_in] dh A_cat alone (with dropout); empty: it is added to dx
  Matrix dh;                   // [N, >= S] f32 scratch: holds dh afterwards
  Matrix drouting;             // [N, ·] f32: dgate added into the gate columns; empty: no router gradient
  std::span<const LinearGradients> gradients;           // per module, or empty
  std::span<const AdapterGradients> adapter_gradients;  // per segment, or empty
};

}  // namespace at_moe
