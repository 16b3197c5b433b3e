// Selections of experts as lists of rows and as maps of blocks (cuda/selection.h). No atomics: what is written depends on
// the gates alone.
//   lists  a block per list walks its rows, kListThreads at a time; ballots and the counts of the warps before give places
//   maps   a block per 16 rows of a map, a thread per column, whose 16 gates are one word; a ballot joins 16 columns
#include <algorithm>
#include <span>

#include "backend/segments.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/number.h"
#include "cuda/selection.h"

namespace at_moe::cuda {

namespace {

constexpr int kListThreads = 512, kListWarps = kListThreads / 32, kMapThreads = 256;
constexpr int kListSlot = 3, kMapSlot = 4;

__global__ void __launch_bounds__(kListThreads) list_rows(const RowList* lists, const float* routing, int64_t stride) {
  const RowList list = lists[blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __shared__ int counts[kListWarps];
  int total = 0;
  for (int first = list.begin; first < list.end; first += kListThreads) {
    const int row = first + static_cast<int>(threadIdx.x);
    const bool selects = row < list.end && routing[row * stride + list.gate] != 0;
    const unsigned selected = __ballot_sync(~0u, selects);
    __syncthreads();  // the counts before may still be read
    if (lane == 0) counts[warp] = __popc(selected);
    __syncthreads();
    int at = total + __popc(selected & ((1u << lane) - 1));
    for (int w = 0; w < kListWarps; ++w) {
      if (w < warp) at += counts[w];
      total += counts[w];
    }
    if (selects) list.rows[at] = row;
  }
  if (threadIdx.x == 0) *list.count = total;
}

template <typename T>
__device__ void clear(const Matrix& matrix, int64_t row, int column) {
  if (matrix.data) static_cast<T*>(matrix.data)[row * matrix.stride + column] = narrow<T>(0);
}

template <typename T>
__global__ void __launch_bounds__(kMapThreads)
    map_blocks(const OpenBlocks* maps, const float* routing, int64_t stride) {
  const OpenBlocks map = maps[blockIdx.y];
  const int row0 = static_cast<int>(blockIdx.x) * kOpenBlock, blocks = (map.cols + kOpenBlock - 1) / kOpenBlock;
  if (row0 >= map.end || row0 + kOpenBlock <= map.begin) return;
  uint8_t* open = map.open + blockIdx.x * blocks;
  for (int first = 0; first < map.cols; first += kMapThreads) {
    const int column = first + static_cast<int>(threadIdx.x);
    unsigned inside = 0, selected = 0;  // a bit per row
    if (column < map.cols) {
      const float* gates = routing + map.gate_column[column];
#pragma unroll
      for (int i = 0; i < kOpenBlock; ++i) {
        const int row = row0 + i;
        if (row < map.begin || row >= map.end) continue;
        inside |= 1u << i;
        if (gates[row * stride] != 0) selected |= 1u << i;
      }
    }
    for (unsigned closed = inside & ~selected; closed != 0; closed &= closed - 1) {
      const int row = row0 + __ffs(closed) - 1;
      clear<float>(map.raw, row, column);
      clear<float>(map.gated, row, column);
      clear<T>(map.operand, row, column);
      clear<T>(map.rest, row, column);
    }
    const unsigned columns = __ballot_sync(~0u, selected != 0);
    const int half = threadIdx.x % 32 / kOpenBlock * kOpenBlock;
    if (threadIdx.x % kOpenBlock == 0 && column < map.cols) {
      open[column / kOpenBlock] = (columns >> half & 0xffff) != 0;
    }
  }
}

}  // namespace

// Of fewer rows, too few select an expert to fill the rows of a tensor core. wgmma may sum in another order than gathered
// products, and the rows of a call must not choose between the two.
std::vector<MixtureSegment> CudaBackend::segments_of(std::span<const AdapterSegment> segments, int64_t rows) const {
  constexpr int64_t kLeastRows = 128;
  std::vector<MixtureSegment> own;
  for (const AdapterSegment& segment : merge_segments(segments, rows)) {
    own.push_back({segment, !uses_wgmma_ && segment.stack->selective && segment.end - segment.begin >= kLeastRows});
  }
  return own;
}

void CudaBackend::list_rows(const Matrix& routing, std::span<RowList> lists) {
  if (lists.empty()) return;
  int64_t elements = static_cast<int64_t>(lists.size());
  for (const RowList& list : lists) elements += list.end - list.begin;
  int32_t* counts = scratch<int32_t>(kListSlot, elements);
  int32_t* rows = counts + lists.size();
  for (RowList& list : lists) {
    list.count = counts++;
    list.rows = rows;
    rows += list.end - list.begin;
  }
  launch(stream(), {dim3(static_cast<unsigned>(lists.size())), dim3(kListThreads)}, cuda::list_rows,
         stage(std::span<const RowList>(lists)), routing.row(0), routing.stride);
}

void CudaBackend::map_blocks(const Matrix& routing, std::span<OpenBlocks> maps) {
  if (maps.empty()) return;
  const int64_t row_blocks = open_blocks(routing.rows);
  int64_t bytes = 0;
  for (const OpenBlocks& map : maps) bytes += row_blocks * open_blocks(map.cols);
  auto* open = scratch<uint8_t>(kMapSlot, bytes);
  for (OpenBlocks& map : maps) {
    map.open = open;
    open += row_blocks * open_blocks(map.cols);
  }
  dispatch(activation_, [&](auto element) {
    launch(stream(), {dim3(static_cast<unsigned>(row_blocks), static_cast<unsigned>(maps.size())), dim3(kMapThreads)},
           cuda::map_blocks<decltype(element)>, stage(std::span<const OpenBlocks>(maps)), routing.row(0),
           routing.stride);
  });
}

}  // namespace at_moe::cuda
