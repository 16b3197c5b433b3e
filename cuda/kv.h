// Pages of keys and values of all layers, in the backend's activation type:
//   K, V  [layer][page][kv_head][kPageTokens][head_dim], K of all layers first
#pragma once

#include "backend/backend.h"

namespace at_moe::cuda {

class CudaKvPool : public KvPool {
 public:
  CudaKvPool(const Shape& shape, DType dtype, Buffer memory)
      : KvPool(shape), dtype_(dtype), memory_(std::move(memory)) {}

  static int64_t layer_elements(const Shape& shape) {
    return shape.pages * shape.kv_heads * kPageTokens * shape.head_dim;
  }
  static size_t bytes(const Shape& shape, DType dtype) {
    return 2 * static_cast<size_t>(shape.layers * layer_elements(shape)) * size_of(dtype);
  }

  std::vector<Part> parts(int64_t page) const override {
    const int64_t bytes = shape().kv_heads * kPageTokens * shape().head_dim * static_cast<int64_t>(size_of(dtype_));
    std::vector<Part> parts;
    for (int64_t index = 0; index < 2 * shape().layers; ++index)
      parts.push_back({static_cast<char*>(at(index)) + page * bytes, static_cast<size_t>(bytes)});
    return parts;
  }

  // Element (page, kv_head, token, dim) at ((page * kv_heads + kv_head) * kPageTokens + token) * head_dim + dim.
  void* keys(int64_t layer) const { return at(layer); }
  void* values(int64_t layer) const { return at(shape().layers + layer); }
  DType dtype() const { return dtype_; }

 private:
  void* at(int64_t index) const {
    return memory_.as<char>() + index * layer_elements(shape()) * static_cast<int64_t>(size_of(dtype_));
  }

  DType dtype_;
  Buffer memory_;
};

}  // namespace at_moe::cuda
