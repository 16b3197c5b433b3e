// A weight is either of q8 (cuda/block_matrix.h) or row-major [rows, row_stride] in the backend's activation type, whatever
// it was loaded as, or in f32 for a router; row_stride is cols padded with zeros to a multiple of 16 bytes, so that every
// row can be copied in 16-byte pieces.
#pragma once

#include "backend/backend.h"
#include "cuda/product.h"

namespace at_moe::cuda {

class CudaWeight : public Weight {
 public:
  CudaWeight(int64_t rows, int64_t cols, Storage storage, Buffer memory)
      : Weight(rows, cols, storage), memory_(std::move(memory)) {}

  static size_t bytes(int64_t rows, int64_t cols, Storage storage) {
    if (is_blocks(storage)) return BlockMatrix::bytes(rows, cols);
    const DType type = number_type(storage);
    return static_cast<size_t>(rows * operand_cols(cols, type)) * size_of(type);
  }

  size_t bytes() const override { return memory_.bytes(); }
  Matrix matrix() const {
    const DType type = number_type(storage());
    return {memory_.as<void>(), rows(), cols(), operand_cols(cols(), type), type};
  }
  BlockMatrix blocks() const { return BlockMatrix::in(memory_.as<void>(), rows(), cols()); }

 private:
  Buffer memory_;
};

inline Matrix matrix_of(const Weight& weight) { return static_cast<const CudaWeight&>(weight).matrix(); }
inline BlockMatrix blocks_of(const Weight& weight) { return static_cast<const CudaWeight&>(weight).blocks(); }
inline WeightView view_of(const Weight& weight) {
  if (is_blocks(weight.storage())) return blocks_of(weight);
  return matrix_of(weight);
}

}  // namespace at_moe::cuda
