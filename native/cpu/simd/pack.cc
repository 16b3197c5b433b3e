// Rows of any stored type into packed panels (weight.h), and packed panels back into f32 blocks. 16 rows x 16 inputs at a
// time: widen to f32, transpose in registers, narrow. Only the last step rounds (to nearest, ties to even), so a type
// packed into itself keeps its bits.
#include <type_traits>

#include "cpu/simd/magnitudes.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

HWY_INLINE void store_line(DType type, const float* line, const float* next, char* out) {
  for (int v = 0; v < kVectors; ++v) {
    const Vec value = hn::Load(F32(), line + v * kLanes);
    if (type == DType::f32) {
      hn::Store(value, F32(), reinterpret_cast<float*>(out) + v * kLanes);
    } else if (type == DType::f16) {
      hn::Store(round_to_f16(value), F16(), reinterpret_cast<hwy::float16_t*>(out) + v * kLanes);
    } else {
      const auto high = round_to_bf16(hn::Load(F32(), next + v * kLanes));
      const auto low = hn::ShiftRight<16>(round_to_bf16(value));
      hn::Store(hn::Or(high, low), U32(), reinterpret_cast<uint32_t*>(out) + v * kLanes);
    }
  }
}

// 16 lines of pairs of f16 inputs [16 outputs][2], each as the lines of its two inputs.
void store_halves(const float* pairs, char* panel) {
  for (int64_t line = 0; line < 16; ++line, panel += 64) {
    for (int v = 0; v < kVectors; ++v) {
      const auto both = hn::BitCast(U32(), hn::Load(F32(), pairs + line * 16 + v * kLanes));
      auto* out = reinterpret_cast<uint16_t*>(panel) + v * kLanes;
      hn::Store(hn::TruncateTo(U16(), both), U16(), out);
      hn::Store(hn::TruncateTo(U16(), hn::ShiftRight<16>(both)), U16(), out + 16);
    }
  }
}

template <DType Source, DType Target>
bool pack_as(const char* source, int64_t source_row, int64_t rows, int64_t cols, char* panel) {
  alignas(64) float block[16 * 16];
  alignas(64) float turned[16 * 16];
  constexpr int kSize = Source == DType::f32 ? 4 : 2;
  constexpr int kStep = Target == DType::bf16 ? 2 : 1;
  constexpr int kBytes = Target == DType::f16 ? 32 : 64;
  Magnitudes<uint32_t> wide;
  Magnitudes<std::conditional_t<kSize == 2, uint16_t, uint32_t>> own;
  int64_t k = 0;
  if constexpr (Source == Target) {
    // Four bytes of a row are a lane of a line, or of two lines in f16: move lanes, a cache line of each row at a time.
    if (rows == 16 && source_row % 4 == 0) {
      constexpr int64_t kInputs = 64 / kSize;
      for (; k + kInputs <= cols; k += kInputs, panel += 1024) {
        for (int64_t r = 0; r < 16; ++r) {
          for (int v = 0; v < kVectors; ++v) own.add(source + r * source_row + k * kSize + v * kLanes * 4);
        }
        if constexpr (Target == DType::f16) {
          transpose16(source + k * kSize, source_row / 4, turned, 16);
          store_halves(turned, panel);
        } else {
          transpose16(source + k * kSize, source_row / 4, panel, 16);
        }
      }
    }
  }
  for (; k < cols; k += 16) {
    const int64_t count = cols - k < 16 ? cols - k : 16;
    if (count < 16 || rows < 16) hwy::ZeroBytes<sizeof(block)>(block);
    for (int64_t r = 0; r < rows; ++r) {
      const char* from = source + r * source_row + k * kSize;
      alignas(64) char tail[64] = {};
      if (count < 16) {
        for (int64_t i = 0; i < count * kSize; ++i) tail[i] = from[i];
        from = tail;
      }
      for (int v = 0; v < kVectors; ++v) {
        wide.add(load_bits(Source, from + v * kLanes * kSize));
        hn::Store(load_as_float(Source, from + v * kLanes * kSize), F32(), block + r * 16 + v * kLanes);
      }
    }
    transpose16(block, 16, turned, 16);
    for (int64_t i = 0; i < count; i += kStep, panel += kBytes) {
      store_line(Target, turned + i * 16, turned + (i + kStep - 1) * 16, panel);
    }
  }
  constexpr uint32_t kInfinity = infinity_bits(Source);
  constexpr bool overflows = Target == DType::f16 && Source != DType::f16;
  constexpr uint32_t kMost = overflows ? std::bit_cast<uint32_t>(largest_stored(Storage::f16)) : kInfinity - 1;
  return wide.largest() <= kMost && own.largest() < (kSize == 2 ? kInfinity >> 16 : kInfinity);
}

template <DType Source>
bool pack_from(const char* source, int64_t source_row, int64_t rows, int64_t cols, DType dtype, char* panel) {
  switch (dtype) {
    case DType::f32: return pack_as<Source, DType::f32>(source, source_row, rows, cols, panel);
    case DType::f16: return pack_as<Source, DType::f16>(source, source_row, rows, cols, panel);
    case DType::bf16: return pack_as<Source, DType::bf16>(source, source_row, rows, cols, panel);
  }
  return false;
}

}  // namespace

bool pack(const char* source, int64_t source_row, DType source_type, int64_t rows, int64_t cols, DType dtype,
          char* panel) {
  switch (source_type) {
    case DType::f32: return pack_from<DType::f32>(source, source_row, rows, cols, dtype, panel);
    case DType::f16: return pack_from<DType::f16>(source, source_row, rows, cols, dtype, panel);
    case DType::bf16: return pack_from<DType::bf16>(source, source_row, rows, cols, dtype, panel);
  }
  return false;
}

template <Storage S>
void widen(const char* panel, int64_t begin, int64_t count, float* out) {
  constexpr int I = Step<S>::kInputs;
  for (int64_t k = 0; k < count; k += I) {
    for (int v = 0; v < kVectors; ++v) {
      const auto line = Step<S>::load(panel + Step<S>::place(begin + k), v);
      const auto scale = Step<S>::scale(panel, begin + k, v);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) {
        if (k + i < count) hn::Store(Step<S>::input(line, i, scale), F32(), out + (k + i) * 16 + v * kLanes);
      }
    }
  }
}

template <Storage S>
void widen_transposed(const char* panel, int64_t begin, int64_t count, float* out, int64_t out_row) {
  alignas(64) float block[16 * 16];
  if (count < 16) hwy::ZeroBytes<sizeof(block)>(block);
  widen<S>(panel, begin, count, block);
  transpose16(block, 16, out, out_row);
}

void transpose(const float* in, int64_t in_row, float* out, int64_t out_row) { transpose16(in, in_row, out, out_row); }

template void widen<Storage::f32>(const char*, int64_t, int64_t, float*);
template void widen<Storage::f16>(const char*, int64_t, int64_t, float*);
template void widen<Storage::bf16>(const char*, int64_t, int64_t, float*);
template void widen<Storage::q8>(const char*, int64_t, int64_t, float*);
template void widen_transposed<Storage::f32>(const char*, int64_t, int64_t, float*, int64_t);
template void widen_transposed<Storage::f16>(const char*, int64_t, int64_t, float*, int64_t);
template void widen_transposed<Storage::bf16>(const char*, int64_t, int64_t, float*, int64_t);
template void widen_transposed<Storage::q8>(const char*, int64_t, int64_t, float*, int64_t);

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
