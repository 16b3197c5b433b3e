#include "engine/quantize.h"

#include <algorithm>

namespace at_moe {

namespace {

constexpr int64_t kSlabElements = int64_t{4} << 20;

}  // namespace

Pass quantize_tensor(TensorSource source, QuantizedTensor& result) {
  const int64_t rows = source.rows(), cols = source.cols(), blocks = q8_blocks(cols);
  result.values.resize(static_cast<size_t>(rows * cols));
  result.scales.resize(static_cast<size_t>(rows * blocks) * sizeof(uint16_t));
  auto* values = reinterpret_cast<int8_t*>(result.values.data());
  auto* scales = reinterpret_cast<uint16_t*>(result.scales.data());
  const int64_t slab = std::max<int64_t>(1, kSlabElements / cols);
  for (int64_t row = 0; row < rows; row += slab) {
    const int64_t count = std::min(slab, rows - row);
    check_rows(source, row, count, kQ8Largest);
    const char* data =
        static_cast<const char*>(source.data()) + row * cols * static_cast<int64_t>(size_of(source.dtype()));
    quantize(source.dtype(), data, count, cols, values + row * cols, scales + row * blocks);
    co_await unit_end();
  }
  source.release(0, rows);
}

}  // namespace at_moe
