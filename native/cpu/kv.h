// Pages of keys and values of all layers, f32. A page holds kPageTokens tokens of one sequence:
//   K [layer][page][kv_head][head_dim][16 tokens]         a page is a panel of the product q·Kᵀ
//   V [layer][page][kv_head][16 tokens][value_stride]     value_stride = head_dim padded to 16, the padding is zero
#pragma once

#include "backend/backend.h"

namespace at_moe {

class CpuKvPool : public KvPool {
 public:
  CpuKvPool(const Shape& shape, Buffer memory) : KvPool(shape), memory_(std::move(memory)) {}

  static int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
  static size_t bytes(const Shape& shape) {
    return sizeof(float) * static_cast<size_t>(shape.layers * shape.pages * shape.kv_heads * kPageTokens) *
           static_cast<size_t>(shape.head_dim + padded(shape.head_dim));
  }

  std::vector<Part> parts(int64_t page) const override {
    const size_t tokens = sizeof(float) * static_cast<size_t>(shape().kv_heads * kPageTokens);
    const size_t key_bytes = tokens * static_cast<size_t>(shape().head_dim);
    const size_t value_bytes = tokens * static_cast<size_t>(value_stride());
    std::vector<Part> parts;
    for (int64_t layer = 0; layer < shape().layers; ++layer) {
      parts.push_back({keys(layer, page, 0), key_bytes});
      parts.push_back({values(layer, page, 0), value_bytes});
    }
    return parts;
  }

  int64_t value_stride() const { return padded(shape().head_dim); }

  // Element (dim, token) at [dim * kPageTokens + token].
  float* keys(int64_t layer, int64_t page, int64_t kv_head) const {
    return memory_.as<float>() + index(layer, page, kv_head) * kPageTokens * shape().head_dim;
  }
  // Element (token, dim) at [token * value_stride() + dim].
  float* values(int64_t layer, int64_t page, int64_t kv_head) const {
    const int64_t keys_total = shape().layers * shape().pages * shape().kv_heads * kPageTokens * shape().head_dim;
    return memory_.as<float>() + keys_total + index(layer, page, kv_head) * kPageTokens * value_stride();
  }

 private:
  int64_t index(int64_t layer, int64_t page, int64_t kv_head) const {
    return (layer * shape().pages + page) * shape().kv_heads + kv_head;
  }

  Buffer memory_;
};

}  // namespace at_moe
