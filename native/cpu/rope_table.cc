#include "cpu/rope_table.h"

#include <algorithm>
#include <cmath>

namespace at_moe::cpu {

void RopeTable::prepare(int64_t rows, std::span<const double> inv_freq) {
  if (!std::ranges::equal(inv_freq, inv_freq_)) {
    inv_freq_.assign(inv_freq.begin(), inv_freq.end());
    positions_.clear();
  }
  if (rows <= static_cast<int64_t>(positions_.size())) return;
  positions_.resize(static_cast<size_t>(rows), -1);
  values_.resize(positions_.size() * 2 * inv_freq_.size());
}

const float* RopeTable::row(int64_t n, int64_t position) {
  const size_t half = inv_freq_.size();
  float* values = values_.data() + static_cast<size_t>(n) * 2 * half;
  int64_t& known = positions_[static_cast<size_t>(n)];
  if (known == position) return values;
  known = position;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * inv_freq_[i];
    values[i] = static_cast<float>(std::cos(angle));
    values[half + i] = static_cast<float>(std::sin(angle));
  }
  return values;
}

}  // namespace at_moe::cpu
