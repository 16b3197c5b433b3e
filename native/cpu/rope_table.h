// cos and sin of the angles position · inv_freq of a step's rows. They are kept from call to call, since every layer of a
// step asks for the same ones.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace at_moe::cpu {

class RopeTable {
 public:
  // Of the calls of `row` that follow: how many rows there are, and the D/2 frequencies.
  void prepare(int64_t rows, std::span<const double> inv_freq);
  // cos [D/2], sin [D/2] of row n at a position. Threads may ask at once for different rows.
  const float* row(int64_t n, int64_t position);

 private:
  std::vector<double> inv_freq_;
  std::vector<int64_t> positions_;  // by row; -1: not computed yet
  std::vector<float> values_;
};

}  // namespace at_moe::cpu
