#include "cuda/emulated/tensor_copy.h"

#include <cstring>

#include "core/status.h"
#include "cuda/emulated/barrier.h"
#include "cuda/emulated/shared.h"

namespace at_moe::cuda {

namespace {

constexpr int kPoison = 0xFF;
constexpr int kElementBytes = 2;
constexpr uint64_t kMark = 0x7E4504A9;  // of memory that holds a map

// What a map of this device says, in the units of the driver's cuTensorMapEncodeTiled.
struct Description {
  uint64_t mark;
  const unsigned char* address;
  uint64_t dims[2];  // elements of a row, rows
  uint64_t stride;   // bytes
  uint32_t box[2];
};
static_assert(sizeof(Description) <= sizeof(TensorMap));

void land(const Description& map, void* to, int64_t col, int64_t row) {
  for (uint32_t line = 0; line < map.box[1]; ++line) {
    const int64_t at_row = row + line;
    const bool inside = at_row >= 0 && at_row < static_cast<int64_t>(map.dims[1]);
    for (uint32_t i = 0; i < map.box[0]; ++i) {
      const int64_t at_col = col + i;
      uint16_t value = 0;
      if (inside && at_col >= 0 && at_col < static_cast<int64_t>(map.dims[0])) {
        std::memcpy(&value, map.address + static_cast<uint64_t>(at_row) * map.stride + at_col * kElementBytes,
                    sizeof(value));
      }
      const uint32_t plain = shared_address(to) + (line * map.box[0] + i) * kElementBytes;
      std::memcpy(shared_pointer(swizzle128(plain)), &value, sizeof(value));
    }
  }
}

}  // namespace

TensorMap make_tensor_map(const Matrix& matrix, int box_rows) {
  const uint64_t stride = static_cast<uint64_t>(matrix.stride) * kElementBytes;
  require(size_of(matrix.dtype) == kElementBytes, "tensor map: not a matrix of 16-bit values");
  require(matrix.rows > 0 && matrix.cols > 0, "tensor map: an empty matrix");
  require(reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && stride % 16 == 0 && stride < uint64_t{1} << 40,
          "tensor map: address or stride is not aligned");
  require(box_rows > 0 && box_rows <= 256, "tensor map: a box of ", box_rows, " rows");
  const Description description{kMark,
                                static_cast<const unsigned char*>(matrix.data),
                                {static_cast<uint64_t>(matrix.cols), static_cast<uint64_t>(matrix.rows)},
                                stride,
                                {kBoxCols, static_cast<uint32_t>(box_rows)}};
  TensorMap map{};
  std::memcpy(&map, &description, sizeof(description));
  return map;
}

void copy_box(void* to, const TensorMap* map, int col, int row, uint64_t* barrier) {
  Description description;
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) simt::fault("a tensor map that is not aligned to 64 bytes");
  std::memcpy(&description, map, sizeof(description));
  if (description.mark != kMark) simt::fault("a copy without a tensor map");
  if (shared_address(to) % 128 != 0) simt::fault("a box that is not aligned to 128 bytes");
  const uint32_t bytes = description.box[0] * description.box[1] * kElementBytes;
  std::memset(to, kPoison, bytes);
  simt::defer([=] {
    land(description, to, col, row);
    barrier_complete(barrier, bytes);
  });
}

}  // namespace at_moe::cuda
