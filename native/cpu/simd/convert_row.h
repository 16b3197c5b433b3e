// A row of values converted block by block (kernels.h), the last block filled up with zeros.
#pragma once

#include <cstring>

#include "cpu/simd/vector.h"

HWY_BEFORE_NAMESPACE();
namespace at_moe::cpu::AT_MOE_SIMD_NS {

template <typename Block, void (*convert_block)(const float* x, Block* out)>
void convert_row(const float* x, int64_t cols, char* out, int64_t out_block) {
  for (; cols >= kDotBlock; cols -= kDotBlock, x += kDotBlock, out += out_block) {
    convert_block(x, reinterpret_cast<Block*>(out));
  }
  if (cols == 0) return;
  float last[kDotBlock] = {};
  std::memcpy(last, x, sizeof(float) * static_cast<size_t>(cols));
  convert_block(last, reinterpret_cast<Block*>(out));
}

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
HWY_AFTER_NAMESPACE();
