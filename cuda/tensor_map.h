// Tensor maps: how the copy engine of sm_90 (cp.async.bulk.tensor) finds boxes of a row-major matrix of 16-bit values. A
// box has kBoxCols columns, a line of 128 bytes in shared memory, where the 16-byte pieces of a line are permuted by the
// 128-byte swizzle; what lies outside of the matrix is copied as zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "core/matrix.h"

namespace at_moe::cuda {

inline constexpr int kBoxCols = 64;

struct alignas(128) TensorMap {
  uint64_t words[16];
};

// Of boxes of `box_rows` rows, at most 256. The matrix begins at a multiple of 16 bytes, and so do its rows; it is not empty.
TensorMap make_tensor_map(const Matrix& matrix, int box_rows);

// Maps that have been made: one says nothing but where a matrix lies, so it never goes stale.
class TensorMaps {
 public:
  const TensorMap& of(const Matrix& matrix, int box_rows);

 private:
  struct Key {
    Matrix matrix;
    int box_rows;
    bool operator==(const Key& other) const;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  static constexpr size_t kMost = 16384;

  std::unordered_map<Key, TensorMap, Hash> maps_;
};

}  // namespace at_moe::cuda
