#include "cpu/kernels.h"

namespace at_moe::cpu::AT_MOE_SIMD_NS {

extern const double kMultiplyRate;
extern const int64_t kTilePanels, kLineRows;
int64_t line_panels(int64_t rows);
void multiply(const Tile&);
template <Storage S>
void lines(const Lines&);
template <Storage S>
void widen(const char* panel, int64_t begin, int64_t count, float* out);
template <Storage S>
void widen_transposed(const char* panel, int64_t begin, int64_t count, float* out, int64_t out_row);
void transpose(const float* in, int64_t in_row, float* out, int64_t out_row);
bool pack(const char* source, int64_t source_row, DType source_type, int64_t rows, int64_t cols, DType dtype,
          char* panel);
bool pack_quantized(const char* source, int64_t source_row, DType source_type, int64_t cols, char* panel);
bool pack_blocks(const Q8Rows& source, char* panel);
ScoreRow softmax(float* scores, int64_t keys, int64_t first, int64_t last);
void softmax_backward(float* p, float* ds, int64_t keys, int64_t first, int64_t last, float lse, float delta);
void blend(float* out, const float* in, int64_t n, float keep, float take);
float dot(const float* a, const float* b, int64_t n);
void swiglu(const float* gate, const float* up, float* y, int64_t n);
void swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n);
double exp_sum(const float* l, int64_t n, float largest);
void exp_scaled(float* l, int64_t n, float largest, float log_sum, float weight);
float read(const char* data, int64_t bytes);
int64_t spin_fma(int64_t count, float* keep);

const Kernels& kernels() {
  static const Kernels table = {
      kMultiplyRate,
      kTilePanels,
      kLineRows,
      line_panels,
      multiply,
      {lines<Storage::f32>, lines<Storage::f16>, lines<Storage::bf16>, lines<Storage::q8>},
      {widen<Storage::f32>, widen<Storage::f16>, widen<Storage::bf16>, widen<Storage::q8>},
      {widen_transposed<Storage::f32>, widen_transposed<Storage::f16>, widen_transposed<Storage::bf16>,
       widen_transposed<Storage::q8>},
      transpose,
      pack,
      pack_quantized,
      pack_blocks,
      softmax,
      softmax_backward,
      blend,
      dot,
      swiglu,
      swiglu_backward,
      exp_sum,
      exp_scaled,
      read,
      spin_fma,
  };
  return table;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
