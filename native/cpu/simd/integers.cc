// Rows of activations quantised block by block (kernels.h), and the table of the products of bytes.
#include <bit>
#include <limits>

#include "cpu/simd/convert_row.h"
#include "cpu/simd/dots.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

void dots(const Dots& all);

namespace {

constexpr int kParts = kQ8Block / kLanes;

// 32-bit lanes of one vector of a block.
HWY_INLINE void store(Ints integers, Dot::Input* out) {
  if constexpr (sizeof(Dot::Input) == 2) {
    alignas(16) static constexpr uint8_t kOrder[16] = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15};
    const hn::Repartition<uint8_t, I32> bytes;
    integers = hn::TableLookupBytes(integers, hn::BitCast(I32(), hn::LoadDup128(bytes, kOrder)));
  }
  const hn::Rebind<Dot::Input, I32> narrow;
  hn::StoreU(hn::DemoteTo(narrow, integers), narrow, out);
}

void quantize_block(const float* x, RowBlock* out) {
  const F32 f;
  const I32 d;
  Vec value[kParts];
  Ints most = hn::Zero(d);  // bits of magnitudes, which are ordered as the magnitudes are
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i) {
    value[i] = hn::LoadU(f, x + i * kLanes);
    most = hn::Max(most, hn::BitCast(d, hn::Abs(value[i])));
  }
  const float largest = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(d, most)));
  const bool finite = largest <= std::numeric_limits<float>::max();
  if (!finite || largest < 0x1p-119f) {
    *out = {};
    if (!finite) out->scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const Vec steps = hn::Set(f, 127.0f / largest);
  Ints sum = hn::Zero(d);
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i) {
    const Ints integers = hn::NearestInt(hn::Mul(value[i], steps));
    sum = hn::Add(sum, integers);
    store(integers, out->values + i * kLanes);
  }
  out->scale = largest / 127.0f;
  out->start = -int32_t{Q8Panel::kFlip} * hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace

const IntegerKernels& integer_kernels() {
  static const IntegerKernels table = {sizeof(RowBlock), convert_row<RowBlock, quantize_block>, dots};
  return table;
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
