// The functions that exist once per instruction set, and the choice among the sets. Every set computes an element of a
// product of f32 as one chain acc = fma(a, b, acc) over ascending k, so that all shapes and cuts of it agree bit for bit.
#pragma once

#include <cstdint>
#include <span>

#include "core/q8.h"

namespace at_moe::cpu {

inline constexpr int64_t kBlockK = 256;   // k-block of a product: a panel of it stays in the first-level cache
inline constexpr int64_t kDotBlock = 32;  // inputs of a block of converted rows
static_assert(kDotBlock == kQ8Block && kBlockK % kDotBlock == 0);

// Memory that is read after a product: `streams` runs of bytes.
struct Ahead {
  const char* at = nullptr;
  int64_t streams = 0, bytes = 0, stride = 0;
};

// acc[r][16 p + c] += Σ_k a[r][k] b[p][k][c], all f32. What lies ahead is brought into the second-level cache on the way.
struct Tile {
  int64_t rows = 0, panels = 0, k = 0;
  const float* a = nullptr;
  int64_t a_row = 0, a_k = 1;
  const float* b = nullptr;
  int64_t b_panel = 0, b_k = 16;
  float* acc = nullptr;
  int64_t acc_row = 0, acc_panel = 16;
  Ahead ahead;
};

// acc[r][16 p + c] += Σ_k a[r][k] w[p][k][c] over packed panels (see weight.h) read once: few rows, bound by memory. The
// inputs are [begin, begin + k) of the panels; begin is even, in q8 the start of a block.
struct Lines {
  int64_t rows = 0, panels = 0, begin = 0, k = 0;  // rows <= line_rows
  const char* w = nullptr;
  int64_t w_panel = 0;  // bytes
  const float* a = nullptr;
  int64_t a_row = 0;
  float* acc = nullptr;
  int64_t acc_row = 0;
};

// acc[r][16 p + c] += Σ_k a[r][k] w[p][k][c] over rows that DotKernels::convert converted, from block `begin` on.
struct Dots {
  int64_t rows = 0, panels = 0, begin = 0, blocks = 0;
  int64_t inputs = 0;  // that the panels have: the last block may end before its 32
  const char* w = nullptr;
  int64_t w_panel = 0;  // bytes
  const char* a = nullptr;
  int64_t a_block = 0;  // bytes
  float* acc = nullptr;
  int64_t acc_row = 0;
};

// One row of attention scores against a run of keys. Entries [first, last) are visible, of [0, keys); keys and the
// rows' starts are multiples of 16.
struct ScoreRow {
  float maximum = 0, sum = 0;
};

struct Kernels {
  double multiply_rate;                  // multiply-adds a second of a thread, rather too few
  int64_t tile_panels;                   // panels that `multiply` takes at once
  int64_t line_rows;                     // most rows of `lines`
  int64_t (*line_panels)(int64_t rows);  // panels that `lines` takes at once
  void (*multiply)(const Tile&);         // any number of rows and panels
  void (*lines[4])(const Lines&);        // by storage
  // Inputs [begin, begin + count) of a packed panel as f32 [count][16]; begin even, in q8 a multiple of 4.
  void (*widen[4])(const char* panel, int64_t begin, int64_t count, float* out);
  // The same, transposed: out[o * out_row + i] for 16 outputs o, and inputs i < 16, zero from count on.
  void (*widen_transposed[4])(const char* panel, int64_t begin, int64_t count, float* out, int64_t out_row);
  // in [16][16] -> out[j][i].
  void (*transpose)(const float* in, int64_t in_row, float* out, int64_t out_row);
  // 16 rows of `cols` values of `source_type`, `source_row` bytes apart, into a packed panel; rows from `rows` on are zero.
  // Returns whether all values are finite.
  bool (*pack)(const char* source, int64_t source_row, DType source_type, int64_t rows, int64_t cols, DType dtype,
               char* panel);
  // 16 rows into a packed panel of q8: of numbers, as above, quantised; of blocks, as they are. Returns whether all are what
  // core/q8.h allows.
  bool (*pack_quantized)(const char* source, int64_t source_row, DType source_type, int64_t cols, char* panel);
  bool (*pack_blocks)(const Q8Rows& source, char* panel);
  // scores -> exp(scores - max) over [first, last), exact zero elsewhere in [0, keys).
  ScoreRow (*softmax)(float* scores, int64_t keys, int64_t first, int64_t last);
  // p -> P = exp(s - lse), ds -> P (dp - delta) over [first, last), exact zero elsewhere in [0, keys).
  void (*softmax_backward)(float* p, float* ds, int64_t keys, int64_t first, int64_t last, float lse, float delta);
  // out = out * keep + in * take, n a multiple of 16.
  void (*blend)(float* out, const float* in, int64_t n, float keep, float take);
  float (*dot)(const float* a, const float* b, int64_t n);
  // SwiGLU over n values (backend/ops/elementwise.h); outputs may be inputs.
  void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);
  void (*swiglu_backward)(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n);
  // Σ e^(l - largest), and l = weight e^(l - largest - log_sum).
  double (*exp_sum)(const float* l, int64_t n, float largest);
  void (*exp_scaled)(float* l, int64_t n, float largest, float log_sum, float weight);
  // Σ of the f32 sum of a block read in eight streams: the probe of memory.
  float (*read)(const char* data, int64_t bytes);
  // `count` rounds of independent multiply-adds; returns how many there were, and in `keep` a value that needs them.
  int64_t (*spin_fma)(int64_t count, float* keep);
};

// Products of rows that were converted before by packed panels of one storage, which some processors of a set have
// instructions for.
struct DotKernels {
  int64_t row_bytes;  // of a row's block, at most those of 32 floats
  // A row of `cols` values into blocks `out_block` bytes apart, with zeros past the end.
  void (*convert)(const float* x, int64_t cols, char* out, int64_t out_block);
  void (*multiply)(const Dots&);  // any number of rows and panels
};

// Products of bytes, with panels of q8. A block of a row has a scale s and 32 integers a:
//   s = max |x| / 127      a = x · (127 / max |x|), to the nearest, ties to even
// It is zeros where max |x| < 2^-119, and s = NaN where a value is not finite. Σ a q is a sum of integers; it joins
// the accumulator as fma(Σ a q · s, t, acc), t the scale of the panel's block, blocks ascending. All sets agree bit
// for bit where multiply-adds are fused.
using IntegerKernels = DotKernels;

// Products of pairs of bf16, with panels of bf16. A value x of a row is the sum of two:
//   high = bf16(x)      low = bf16(x - high), 0 where high is not finite      |x - high - low| <= 2^-17 |x|
// A set fixes the order in which the products of a block are summed, blocks ascending; adding a block of zeros
// changes no bits.
struct PairKernels : DotKernels {
  // Inputs [begin, begin + count) of a panel, count <= 16, begin even, count too but at the panel's end, as eight lines
  // [16 inputs][2 outputs]: the panel of the transposed weight. Zero from count on.
  void (*turn)(const char* panel, int64_t begin, int64_t count, char* out);
};

struct KernelSet {
  const char* name;
  const Kernels& kernels;
  const IntegerKernels& integers;
  const PairKernels* pairs = nullptr;  // null: products with bf16 weights are those of f32
};

// A set that was built. Only where it runs may its kernels be asked for.
struct BuiltSet {
  const char* name;
  const char* needs;  // what a processor must have for it
  bool by_name;       // taken only when it is named
  bool (*runs)();     // on this processor
  const Kernels& (*kernels)();
  const IntegerKernels& (*integers)();
  const PairKernels& (*pairs)() = nullptr;

  KernelSet get() const { return {name, kernels(), integers(), pairs ? &pairs() : nullptr}; }
};

// All of this build, the best first.
std::span<const BuiltSet> built_sets();

// The best set that this processor runs, or the one of them that AT_MOE_SIMD names; fails with kUnsupported when it
// runs none.
const KernelSet& best_kernels();

}  // namespace at_moe::cpu
