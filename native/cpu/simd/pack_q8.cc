// Sixteen rows into a packed panel of q8 (weight.h): numbers are quantised as core/q8.h says, with the same bits, stored
// blocks keep theirs. Two blocks of every row at a time: their codes are a line of 16 lanes, then lanes are transposed.
#include <algorithm>
#include <cstring>

#include "cpu/simd/magnitudes.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t kPair = 2 * kQ8Block;

struct Pair {
  alignas(64) int8_t codes[16][kPair];
  alignas(64) uint16_t scales[2][16];
};

// q8_scale and its value for the largest magnitudes of kLanes blocks. A block of zeros divides by 1.
struct Scales {
  hn::Vec<U32> bits;
  Vec steps;
};

HWY_INLINE Scales scales_of(Vec largest) {
  const Vec wanted = hn::Div(largest, hn::Set(F32(), 127.0f));
  const Vec fine = hn::Mul(wanted, hn::Set(F32(), 0x1p24f));
  const auto down = hn::ConvertTo(I32(), fine);
  const Vec rounded = hn::ConvertTo(F32(), down);
  const Vec up = hn::IfThenElse(hn::Lt(rounded, fine), hn::Add(rounded, hn::Set(F32(), 1.0f)), rounded);
  const auto high = hn::ShiftRight<13>(hn::Add(hn::BitCast(U32(), wanted), hn::Set(U32(), 0x1FFF)));
  const auto normal = hn::Min(high, hn::Set(U32(), 0x23BFF));
  const auto is_small = hn::Lt(wanted, hn::Set(F32(), 0x1p-14f));
  const auto is_zero = hn::Le(largest, hn::Set(F32(), 0x1p-25f));
  const auto small_bits = hn::BitCast(U32(), hn::ConvertTo(I32(), up));
  const auto normal_bits = hn::Sub(normal, hn::Set(U32(), 112u << 10));
  const auto bits = hn::IfThenElse(hn::RebindMask(U32(), is_small), small_bits, normal_bits);
  const Vec steps =
      hn::IfThenElse(is_small, hn::Mul(up, hn::Set(F32(), 0x1p-24f)), hn::BitCast(F32(), hn::ShiftLeft<13>(normal)));
  return {hn::IfThenZeroElse(hn::RebindMask(U32(), is_zero), bits),
          hn::IfThenElse(is_zero, hn::Set(F32(), 1.0f), steps)};
}

// One block of each of 16 rows, `row` bytes apart, of whole blocks.
template <DType Source>
HWY_INLINE void quantize_blocks(const char* from, int64_t row, int8_t* codes, uint16_t* scales,
                                Magnitudes<uint32_t>& all) {
  constexpr int64_t kBytes = kLanes * (Source == DType::f32 ? 4 : 2);
  constexpr int kParts = static_cast<int>(kQ8Block) / kLanes;
  alignas(64) float largest[16], steps[16];
  for (int64_t r = 0; r < 16; ++r) {
    Magnitudes<uint32_t> own;
    for (int i = 0; i < kParts; ++i) {
      own.add(hn::BitCast(U32(), load_as_float(Source, from + r * row + i * kBytes)));
      all.add(load_bits(Source, from + r * row + i * kBytes));
    }
    largest[r] = std::bit_cast<float>(own.largest());
  }
  for (int v = 0; v < kVectors; ++v) {
    const Scales found = scales_of(hn::Load(F32(), largest + v * kLanes));
    hn::Store(hn::TruncateTo(U16(), found.bits), U16(), scales + v * kLanes);
    hn::Store(found.steps, F32(), steps + v * kLanes);
  }
  const Vec to_integer = hn::Set(F32(), kQ8ToInteger);
  for (int64_t r = 0; r < 16; ++r) {
    const Vec step = hn::Set(F32(), steps[r]);
    for (int i = 0; i < kParts; ++i) {
      const Vec exact = hn::Div(load_as_float(Source, from + r * row + i * kBytes), step);
      const Vec inside = hn::Clamp(exact, hn::Set(F32(), -127.0f), hn::Set(F32(), 127.0f));
      const auto whole = hn::Sub(hn::BitCast(I32(), hn::Add(inside, to_integer)), hn::BitCast(I32(), to_integer));
      const hn::Rebind<int8_t, I32> narrow;
      hn::StoreU(hn::DemoteTo(narrow, whole), narrow, codes + r * kPair + i * kLanes);
    }
  }
}

void flip(int8_t (&codes)[16][kPair]) {
  for (int8_t(&row)[kPair] : codes) {
    for (int8_t& code : row) code = static_cast<int8_t>(code ^ Q8Panel::kFlip);
  }
}

// fill(first input, number of inputs, codes of the first row, scales) for each block of the 16 rows.
template <typename Fill>
HWY_INLINE void pack_pairs(int64_t cols, char* panel, Fill&& fill) {
  Pair pair;
  for (int64_t begin = 0; begin < cols; begin += kPair, panel += Q8Panel::kPair) {
    const int64_t blocks = cols - begin > kQ8Block ? 2 : 1;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = begin + block * kQ8Block, count = cols - first < kQ8Block ? cols - first : kQ8Block;
      fill(first, count, pair.codes[0] + block * kQ8Block, pair.scales[block]);
    }
    if (blocks == 1) {
      for (int8_t(&row)[kPair] : pair.codes) std::memset(row + kQ8Block, 0, kQ8Block);
    }
    flip(pair.codes);
    if (blocks == 2) {
      std::memcpy(panel, pair.scales, sizeof(pair.scales));
      transpose16(pair.codes, 16, panel + Q8Panel::kScales, 16);
    } else {
      alignas(64) char lines[16 * 64];
      transpose16(pair.codes, 16, lines, 16);
      std::memcpy(panel, pair.scales[0], sizeof(pair.scales[0]));
      std::memcpy(panel + Q8Panel::kScales, lines, Q8Panel::kValues);
    }
  }
}

template <DType Source>
bool quantize_as(const char* source, int64_t source_row, int64_t cols, char* panel) {
  constexpr int64_t kSize = Source == DType::f32 ? 4 : 2, kBlockBytes = kQ8Block * kSize;
  Magnitudes<uint32_t> all;
  pack_pairs(cols, panel, [&](int64_t first, int64_t count, int8_t* codes, uint16_t* scales) {
    const char* from = source + first * kSize;
    if (count == kQ8Block) return quantize_blocks<Source>(from, source_row, codes, scales, all);
    char tails[16 * kBlockBytes] = {};
    for (int64_t r = 0; r < 16; ++r) {
      std::memcpy(tails + r * kBlockBytes, from + r * source_row, static_cast<size_t>(count * kSize));
    }
    quantize_blocks<Source>(tails, kBlockBytes, codes, scales, all);
  });
  // All finite f16 are small enough.
  return Source == DType::f16 ? all.largest() < infinity_bits(Source)
                              : all.largest() <= std::bit_cast<uint32_t>(kQ8Largest);
}

}  // namespace

bool pack_quantized(const char* source, int64_t source_row, DType source_type, int64_t cols, char* panel) {
  switch (source_type) {
    case DType::f32: return quantize_as<DType::f32>(source, source_row, cols, panel);
    case DType::f16: return quantize_as<DType::f16>(source, source_row, cols, panel);
    case DType::bf16: return quantize_as<DType::bf16>(source, source_row, cols, panel);
  }
  return false;
}

bool pack_blocks(const Q8Rows& source, char* panel) {
  bool good = true;
  pack_pairs(source.cols, panel, [&](int64_t first, int64_t count, int8_t* codes, uint16_t* scales) {
    for (int64_t r = 0; r < 16; ++r, codes += kPair) {
      const Q8Rows own = source.from_row(r);
      if (count < kQ8Block) std::memset(codes, 0, kQ8Block);
      std::memcpy(codes, own.values + first, static_cast<size_t>(count));
      scales[r] = own.scales[first / kQ8Block];
      int8_t lowest = 0;
      for (int64_t i = 0; i < kQ8Block; ++i) lowest = std::min(lowest, codes[i]);
      good = good && scales[r] < 0x7C00 && lowest > -128;
    }
  });
  return good;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
