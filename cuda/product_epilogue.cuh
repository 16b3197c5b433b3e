// What the engines of products share (cuda/product.cuh, cuda/product_hopper.cuh): the record of a product in the table of a
// launch, its tiles, and the epilogue of two neighbouring elements.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "core/status.h"
#include "cuda/number.h"
#include "cuda/piece.h"
#include "cuda/product.h"

namespace at_moe::cuda {

struct Target {
  void* data;
  int64_t stride;
  bool is_float, aligned;
};

struct ProductRecord {
  int begin, end, cols;
  int first_tile, row_tiles;
  int first_term, terms;
  const float* bias;
  Target out, add, raw, operand, rest;
  Gates gates;
  const float* scale;
};

inline int64_t tiles_of(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

template <typename Shape>
int64_t tiles_of(const Product& product) {
  return tiles_of(product.end - product.begin, Shape::kRows) * tiles_of(product.cols, Shape::kCols);
}

template <typename Shape>
int64_t count_tiles(std::span<const Product> products) {
  int64_t tiles = 0;
  for (const Product& product : products) tiles += tiles_of<Shape>(product);
  return tiles;
}

// Values that the term adds to an element.
inline int64_t depth_of(const Term& term, Form form) {
  const int64_t k = form == Form::kTN ? term.a.rows : term.a.cols;
  const auto check = [&](const auto& b) {
    require(k == (form == Form::kNT ? b.cols : b.rows), "product: ", k, " columns by ", b.rows, " x ", b.cols);
  };
  std::visit(check, term.b);
  return k;
}

inline Target target_of(const Matrix& matrix, DType type) {
  require(!matrix || matrix.dtype == type || matrix.dtype == DType::f32, "product: a result of another type");
  return {matrix.data, matrix.stride, matrix.dtype == DType::f32, in_pieces(matrix, 2)};
}

// The place of its tiles and terms in the table is left open.
template <typename Shape>
ProductRecord record_of(const Product& product, DType type) {
  ProductRecord record{};
  record.begin = static_cast<int>(product.begin);
  record.end = static_cast<int>(product.end);
  record.cols = static_cast<int>(product.cols);
  record.row_tiles = static_cast<int>(tiles_of(product.end - product.begin, Shape::kRows));
  record.terms = static_cast<int>(product.terms.size());
  record.bias = product.bias;
  record.out = target_of(product.out, type);
  record.add = target_of(product.add, type);
  record.raw = target_of(product.raw, type);
  record.operand = target_of(product.operand, type);
  record.rest = target_of(product.rest, type);
  record.gates = product.gates;
  record.scale = product.scale;
  return record;
}

// The product of a tile, of `count` that are ordered by their first tile.
__device__ inline const ProductRecord& product_of(const ProductRecord* products, int count, int tile) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (products[middle].first_tile <= tile) low = middle;
    else high = middle;
  }
  return products[low];
}

template <typename T>
__device__ inline void load_pair(float (&values)[2], const Target& from, int64_t row, int col, int cols) {
  if (from.is_float) {
    load_piece(values, static_cast<const float*>(from.data) + row * from.stride, col, cols, from.aligned);
  } else {
    load_piece(values, static_cast<const T*>(from.data) + row * from.stride, col, cols, from.aligned);
  }
}

template <typename T>
__device__ inline void store_pair(const float (&values)[2], const Target& to, int64_t row, int col, int cols) {
  if (to.is_float) store_piece(values, static_cast<float*>(to.data) + row * to.stride, col, cols, to.aligned);
  else store_piece(values, static_cast<T*>(to.data) + row * to.stride, col, cols, to.aligned);
}

// The epilogue of a run of kTN for two neighbouring elements.
__device__ inline void add_pair(const Target& out, int row, int col, int cols, const float* sums) {
  float* at = static_cast<float*>(out.data) + row * out.stride + col;
  if (out.aligned && col + 1 < cols) {
    float2 both = *reinterpret_cast<const float2*>(at);
    both.x += sums[0];
    both.y += sums[1];
    *reinterpret_cast<float2*>(at) = both;
  } else {
    at[0] += sums[0];
    if (col + 1 < cols) at[1] += sums[1];
  }
}

// The epilogue of two neighbouring elements.
template <typename T>
__device__ inline void finish_pair(const ProductRecord& product, int row, int col, const float* sums) {
  // The sum of a row that no term touched, or of zeros, is +0 whatever else was in the tile.
  float values[2] = {sums[0] + 0.0f, sums[1] + 0.0f};
  if (product.gates.column) {
    const float* routing = product.gates.routing + row * product.gates.stride;
    float gates[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      gates[e] = col + e < product.cols ? routing[product.gates.column[col + e]] : 0;
      if (gates[e] == 0) values[e] = 0;
    }
    if (product.raw.data) store_pair<T>(values, product.raw, row, col, product.cols);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (gates[e] != 0) values[e] = values[e] * gates[e] * product.scale[col + e];
    }
    if (product.operand.data) store_pair<T>(values, product.operand, row, col, product.cols);
    if (product.rest.data) {
      const float rest[2] = {lost_in<T>(values[0]), lost_in<T>(values[1])};
      store_pair<T>(rest, product.rest, row, col, product.cols);
    }
  }
  if (product.add.data) {
    float more[2];
    load_pair<T>(more, product.add, row, col, product.cols);
    values[0] += more[0];
    values[1] += more[1];
  }
  store_pair<T>(values, product.out, row, col, product.cols);
}

}  // namespace at_moe::cuda
