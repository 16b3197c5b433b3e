#pragma once

#include <cstdint>
#include <vector>

namespace at_moe {

struct CharacterRange {
  int32_t first = 0, last = 0;  // code points, both included
  bool operator==(const CharacterRange&) const = default;
};

using CharacterSet = std::vector<CharacterRange>;  // in ascending order, apart

}  // namespace at_moe
