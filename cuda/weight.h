// A weight is row-major [rows, row_stride] in the backend's activation type, whatever it was loaded as, or in f32 for a
// router; row_stride is cols padded with zeros to a multiple of 16 bytes, so that every row can be copied in 16-byte
// pieces.
#pragma once

#include "backend/backend.h"

namespace at_moe::cuda {

class CudaWeight : public Weight {
 public:
  CudaWeight(int64_t rows, int64_t cols, DType dtype, Buffer memory)
      : Weight(rows, cols, dtype), memory_(std::move(memory)) {}

  static int64_t row_stride(int64_t cols, DType dtype) {
    const int64_t piece = 16 / static_cast<int64_t>(size_of(dtype));
    return (cols + piece - 1) / piece * piece;
  }
  static size_t bytes(int64_t rows, int64_t cols, DType dtype) {
    return static_cast<size_t>(rows * row_stride(cols, dtype)) * size_of(dtype);
  }

  size_t bytes() const override { return memory_.bytes(); }
  Matrix matrix() const { return {memory_.as<void>(), rows(), cols(), row_stride(cols(), dtype()), dtype()}; }

 private:
  Buffer memory_;
};

inline Matrix matrix_of(const Weight& weight) { return static_cast<const CudaWeight&>(weight).matrix(); }

}  // namespace at_moe::cuda
