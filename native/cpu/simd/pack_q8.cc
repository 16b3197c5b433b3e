// Sixteen rows into a packed panel of q8 (weight.h): numbers are quantised as core/q8.h says, with the same bits, stored
// blocks keep theirs. Two blocks of every row at a time: their codes are a line of 16 lanes, then lanes are transposed.
#include <cstring>

#include "cpu/simd/widen.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

namespace {

constexpr int64_t kPair = 2 * kQ8Block;

struct Pair {
  alignas(64) int8_t codes[16][kPair];
  alignas(64) uint16_t scales[2][16];
};

// A block of numbers, its tail filled up with zeros.
template <DType Source>
HWY_INLINE uint16_t quantize_block(const char* from, int64_t count, int8_t* codes) {
  constexpr int64_t kSize = Source == DType::f32 ? 4 : 2;
  constexpr int kParts = static_cast<int>(kQ8Block) / kLanes;
  alignas(64) char tail[kQ8Block * kSize] = {};
  if (count < kQ8Block) {
    std::memcpy(tail, from, static_cast<size_t>(count * kSize));
    from = tail;
  }
  Vec part[kParts];
  auto largest = hn::Zero(U32());
  for (int i = 0; i < kParts; ++i) {
    part[i] = load_as_float(Source, from + i * kLanes * kSize);
    largest = hn::Max(largest, hn::And(hn::BitCast(U32(), part[i]), hn::Set(U32(), 0x7FFFFFFFu)));
  }
  const uint16_t scale = q8_scale(std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(U32(), largest))));
  if (scale == 0) {
    std::memset(codes, 0, kQ8Block);
    return scale;
  }
  const Vec step = hn::Set(F32(), half_to_float(scale)), to_integer = hn::Set(F32(), kQ8ToInteger);
  for (int i = 0; i < kParts; ++i) {
    const Vec steps = hn::Clamp(hn::Div(part[i], step), hn::Set(F32(), -127.0f), hn::Set(F32(), 127.0f));
    const auto whole = hn::Sub(hn::BitCast(I32(), hn::Add(steps, to_integer)), hn::BitCast(I32(), to_integer));
    const hn::Rebind<int8_t, I32> narrow;
    hn::StoreU(hn::DemoteTo(narrow, whole), narrow, codes + i * kLanes);
  }
  return scale;
}

void flip(int8_t (&codes)[16][kPair]) {
  for (int8_t(&row)[kPair] : codes) {
    for (int8_t& code : row) code = static_cast<int8_t>(code ^ Q8Panel::kFlip);
  }
}

// fill(row, first input, number of inputs, codes) -> scale, for each block of each row.
template <typename Fill>
HWY_INLINE void pack_pairs(int64_t cols, char* panel, Fill&& fill) {
  Pair pair;
  for (int64_t begin = 0; begin < cols; begin += kPair, panel += Q8Panel::kPair) {
    const int64_t blocks = cols - begin > kQ8Block ? 2 : 1;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = begin + block * kQ8Block, count = cols - first < kQ8Block ? cols - first : kQ8Block;
      for (int64_t r = 0; r < 16; ++r) pair.scales[block][r] = fill(r, first, count, pair.codes[r] + block * kQ8Block);
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
void quantize_as(const char* source, int64_t source_row, int64_t cols, char* panel) {
  constexpr int64_t kSize = Source == DType::f32 ? 4 : 2;
  pack_pairs(cols, panel, [&](int64_t row, int64_t first, int64_t count, int8_t* codes) {
    return quantize_block<Source>(source + row * source_row + first * kSize, count, codes);
  });
}

}  // namespace

void pack_quantized(const char* source, int64_t source_row, DType source_type, int64_t cols, char* panel) {
  switch (source_type) {
    case DType::f32: return quantize_as<DType::f32>(source, source_row, cols, panel);
    case DType::f16: return quantize_as<DType::f16>(source, source_row, cols, panel);
    case DType::bf16: return quantize_as<DType::bf16>(source, source_row, cols, panel);
  }
}

void pack_blocks(const Q8Rows& source, char* panel) {
  pack_pairs(source.cols, panel, [&](int64_t row, int64_t first, int64_t count, int8_t* codes) {
    const Q8Rows own = source.from_row(row);
    if (count < kQ8Block) std::memset(codes, 0, kQ8Block);
    std::memcpy(codes, own.values + first, static_cast<size_t>(count));
    return own.scales[first / kQ8Block];
  });
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
