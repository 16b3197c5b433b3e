// A view of row-major device memory. Nothing here owns or touches the bytes.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace at_moe {

struct Matrix {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }

  template <typename T = float>
  T* row(int64_t index) const {
    return static_cast<T*>(data) + index * stride;
  }

  Matrix row_range(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * stride * static_cast<int64_t>(size_of(dtype)), count, cols, stride,
            dtype};
  }

  Matrix col_range(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * static_cast<int64_t>(size_of(dtype)), rows, count, stride, dtype};
  }
};

inline Matrix matrix(void* data, int64_t rows, int64_t cols, DType dtype = DType::f32) {
  return {data, rows, cols, cols, dtype};
}

}  // namespace at_moe
