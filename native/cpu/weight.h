// A weight in panels of 16 outputs, so that one vector holds one input of neighbouring outputs:
//   bf16      [rows/16][cols/2][16][2]   pairs of inputs, the form of the bf16 dot instructions
//   f16, f32  [rows/16][cols][16]
// Rows are padded to 16 and bf16 columns to 2, with zeros.
#pragma once

#include "backend/backend.h"

namespace at_moe {

inline constexpr int64_t kPanel = 16;

class CpuWeight : public Weight {
 public:
  CpuWeight(int64_t rows, int64_t cols, DType dtype, Buffer memory)
      : Weight(rows, cols, dtype), memory_(std::move(memory)) {}

  static int64_t panel_elements(int64_t cols, DType dtype) {
    return kPanel * (dtype == DType::bf16 ? (cols + 1) / 2 * 2 : cols);
  }
  static size_t bytes(int64_t rows, int64_t cols, DType dtype) {
    return size_of(dtype) * static_cast<size_t>((rows + kPanel - 1) / kPanel * panel_elements(cols, dtype));
  }

  size_t bytes() const override { return memory_.bytes(); }
  int64_t panels() const { return (rows() + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return panel_elements(cols(), dtype()) * static_cast<int64_t>(size_of(dtype())); }
  char* panel(int64_t index) const { return memory_.as<char>() + index * panel_bytes(); }

 private:
  Buffer memory_;
};

}  // namespace at_moe
