#include "cuda/tensor_map.h"

#include <tuple>

namespace at_moe::cuda {

namespace {

auto fields_of(const Matrix& matrix) {
  return std::tuple(matrix.data, matrix.rows, matrix.cols, matrix.stride, matrix.dtype);
}

}  // namespace

bool TensorMaps::Key::operator==(const Key& other) const {
  return box_rows == other.box_rows && fields_of(matrix) == fields_of(other.matrix);
}

size_t TensorMaps::Hash::operator()(const Key& key) const {
  uint64_t hash = reinterpret_cast<uintptr_t>(key.matrix.data);
  for (const int64_t field : {key.matrix.rows, key.matrix.cols, key.matrix.stride, int64_t{key.box_rows}}) {
    hash = (hash ^ hash >> 29) * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(field);
  }
  return static_cast<size_t>(hash ^ hash >> 32);
}

const TensorMap& TensorMaps::of(const Matrix& matrix, int box_rows) {
  const Key key{matrix, box_rows};
  if (const auto known = maps_.find(key); known != maps_.end()) return known->second;
  if (maps_.size() == kMost) maps_.clear();
  return maps_.emplace(key, make_tensor_map(matrix, box_rows)).first->second;
}

}  // namespace at_moe::cuda
