// Instructions of sm_90a, and what is wrong with a ring of copies and products when one of its waits is left out. Layouts
// of shared memory are written out here from the PTX manual's figures and canonical layouts, not with the kernels' helpers.
#include "cuda/hopper.h"

#include <algorithm>
#include <random>
#include <vector>

#include "test/emulated/check.h"

using namespace at_moe::cuda;
using at_moe::DType;

namespace {

constexpr int kWarp = 32, kWarpgroup = 128, kLine = 128, kPeriod = 1024;

__device__ unsigned char* aligned_shared() {
  unsigned char* begin = shared_memory<unsigned char>();
  return begin + (kPeriod - shared_address(begin) % kPeriod) % kPeriod;
}

// Element `at` of line `line` of a box of lines of 64 values: the 16-byte pieces of line l are in the order of p xor l mod 8.
template <typename T>
T& swizzled(unsigned char* box, int line, int at) {
  return reinterpret_cast<T*>(box + line * kLine + ((at / 8) ^ (line % 8)) * 16)[at % 8];
}

template <typename T>
std::vector<T> random_values(int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = round_to<T>(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  return values;
}

// Copies ----------------------------------------------------------------------------------------------------------------

__global__ void copy_one_box(const TensorMap* map, int box_rows, int col, int row, float* before, float* after) {
  unsigned char* box = aligned_shared();
  auto* barrier = reinterpret_cast<uint64_t*>(box + 256 * kLine);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, static_cast<uint32_t>(box_rows * kLine));
    copy_box(box, map, col, row, barrier);
    *before = widen(swizzled<bf16>(box, 0, 0));
  }
  barrier_wait(barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < box_rows * kBoxCols; i += kWarp) {
    after[i] = widen(swizzled<bf16>(box, i / kBoxCols, i % kBoxCols));
  }
}

// Boxes within the matrix, over each of its edges, and beyond all of it; rows are further apart than they are long.
std::string boxes() {
  constexpr int kRows = 100, kCols = 83, kStride = 96;
  auto values = random_values<bf16>(kRows * kStride, 5);
  for (int row = 0; row < kRows; ++row) {
    for (int col = kCols; col < kStride; ++col) values[static_cast<size_t>(row * kStride + col)].bits = 0x7FC0;  // NaN
  }
  for (int box_rows : {8, 64, 256}) {
    const TensorMap map = make_tensor_map({values.data(), kRows, kCols, kStride, DType::bf16}, box_rows);
    for (const auto& [col, row] : {std::pair{0, 0}, {64, 40}, {0, -3}, {-7, 95}, {24, 99}, {128, 0}, {0, 200}}) {
      float before = 0;
      std::vector<float> after(static_cast<size_t>(box_rows * kBoxCols), -1.0f);
      launch(Stream{}, {dim3(1), dim3(kWarp), kPeriod + 256 * kLine + 8}, copy_one_box, &map, box_rows, col, row,
             &before, after.data());
      if (before == before) return "a box landed before its wait";
      for (int i = 0; i < box_rows * kBoxCols; ++i) {
        const int at_row = row + i / kBoxCols, at_col = col + i % kBoxCols;
        const bool inside = at_row >= 0 && at_row < kRows && at_col >= 0 && at_col < kCols;
        const float expected = inside ? widen(values[static_cast<size_t>(at_row * kStride + at_col)]) : 0;
        if (auto wrong = differs("box", i, after[static_cast<size_t>(i)], expected); !wrong.empty()) return wrong;
      }
    }
  }
  return "";
}

// Maps that the driver refuses.
std::string tensor_map_limits() {
  alignas(16) static uint16_t values[1024];
  const auto refuses = [](const at_moe::Matrix& matrix, int box_rows) {
    try {
      make_tensor_map(matrix, box_rows);
      return false;
    } catch (const std::exception&) {
      return true;
    }
  };
  if (refuses({values, 4, 64, 64, DType::f16}, 4)) return "a good matrix is refused";
  if (!refuses({values + 1, 4, 64, 64, DType::f16}, 4)) return "an address that is not aligned";
  if (!refuses({values, 4, 64, 65, DType::f16}, 4)) return "a stride that is not aligned";
  if (!refuses({values, 0, 64, 64, DType::f16}, 4)) return "an empty matrix";
  if (!refuses({values, 4, 64, 64, DType::f16}, 257)) return "a box of too many rows";
  if (!refuses({values, 4, 64, 64, DType::f32}, 4)) return "a matrix of floats";
  return "";
}

// Barriers --------------------------------------------------------------------------------------------------------------

// Thread 0 waits for phases that the others end, each of them after it has counted.
__global__ void count_phases(int phases, int* seen) {
  auto* barrier = shared_memory<uint64_t>();
  auto* count = reinterpret_cast<int*>(barrier + 2);
  if (threadIdx.x == 0) {
    barrier_init(&barrier[0], kWarp - 1);
    barrier_init(&barrier[1], 1);
    *count = 0;
  }
  __syncthreads();
  for (int phase = 0; phase < phases; ++phase) {
    if (threadIdx.x == 0) {
      barrier_wait(&barrier[0], static_cast<uint32_t>(phase % 2));
      seen[phase] = *count;
      barrier_arrive(&barrier[1]);
    } else {
      atomicAdd(count, 1);
      barrier_arrive(&barrier[0]);
      barrier_wait(&barrier[1], static_cast<uint32_t>(phase % 2));
    }
  }
}

std::string barrier_phases() {
  constexpr int kPhases = 5;
  std::vector<int> seen(kPhases);
  launch(Stream{}, {dim3(1), dim3(kWarp), 24}, count_phases, kPhases, seen.data());
  for (int i = 0; i < kPhases; ++i) {
    if (auto wrong = differs("count", i, seen[static_cast<size_t>(i)], 31 * (i + 1)); !wrong.empty()) return wrong;
  }
  return "";
}

// Products --------------------------------------------------------------------------------------------------------------

constexpr int kDepth = 64;

struct Layout {
  int extent;  // rows of m or n
  bool transposed;
  int bytes() const { return extent * kLine; }

  template <typename T>
  T& at(unsigned char* operand, int row, int k) const {
    if (transposed) return swizzled<T>(operand + row / 64 * 64 * kLine, k, row % 64);
    return swizzled<T>(operand, row, k);
  }
  // Bits of the matrix descriptor: start, leading and stride offsets in units of 16 bytes; swizzle of 128 bytes.
  uint64_t descriptor(const unsigned char* operand, int row, int step) const {
    const uint64_t start =
        shared_address(operand) + static_cast<uint32_t>(row * kLine + step * (transposed ? 2048 : 32));
    const uint64_t leading = transposed ? 8192 : 0, stride = 1024;
    return start / 16 | leading / 16 << 16 | stride / 16 << 32 | uint64_t{1} << 62;
  }
};

// d [128, n] = c + a [128, 64] b [64, n], by two warpgroups.
template <typename T, int n, bool kTransposeA, bool kTransposeB>
__global__ void product(const T* a, const T* b, float* d) {
  const Layout left{2 * 64, kTransposeA}, right{n, kTransposeB};
  unsigned char* at_a = aligned_shared();
  unsigned char* at_b = at_a + left.bytes();
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < left.extent * kDepth; i += 2 * kWarpgroup) left.at<T>(at_a, i / kDepth, i % kDepth) = a[i];
  for (int i = thread; i < right.extent * kDepth; i += 2 * kWarpgroup) right.at<T>(at_b, i / kDepth, i % kDepth) = b[i];
  async_proxy_fence();
  __syncthreads();
  const int group_row = thread / kWarpgroup * 64;
  const int row = group_row + thread % kWarpgroup / 32 * 16 + thread % 32 / 4, col = thread % 4 * 2;
  float sums[n / 2];
  for (int i = 0; i < n / 2; ++i) sums[i] = d[(row + i / 2 % 2 * 8) * n + col + i / 4 * 8 + i % 2];
  wgmma_fence();
  for (int step = 0; step < 3; ++step) {
    wgmma<T, n, kTransposeA, kTransposeB>(sums, left.descriptor(at_a, group_row, step),
                                          right.descriptor(at_b, 0, step));
  }
  wgmma_commit();
  wgmma<T, n, kTransposeA, kTransposeB>(sums, left.descriptor(at_a, group_row, 3), right.descriptor(at_b, 0, 3));
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_wait<0>();
  for (int i = 0; i < n / 2; ++i) d[(row + i / 2 % 2 * 8) * n + col + i / 4 * 8 + i % 2] = sums[i];
}

template <typename T, int n, bool kTransposeA, bool kTransposeB>
std::string compare_product() {
  constexpr int kRows = 2 * 64;
  const auto a = random_values<T>(kRows * kDepth, 6), b = random_values<T>(n * kDepth, 7);
  std::vector<float> d(kRows * n);
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i % 100) / 16;
  const std::vector<float> c = d;
  const size_t bytes = kPeriod + (kRows + n) * kLine;
  launch(Stream{}, {dim3(1), dim3(2 * kWarpgroup), bytes}, product<T, n, kTransposeA, kTransposeB>, a.data(), b.data(),
         d.data());
  for (int row = 0; row < kRows; ++row) {
    for (int col = 0; col < n; ++col) {
      const auto at = static_cast<size_t>(row * n + col);
      double expected = c[at];
      for (int k = 0; k < kDepth; ++k) {
        expected +=
            double{widen(a[static_cast<size_t>(row * kDepth + k)])} * widen(b[static_cast<size_t>(col * kDepth + k)]);
      }
      if (auto wrong = differs("d", static_cast<int>(at), d[at], expected, 1e-4); !wrong.empty()) return wrong;
    }
  }
  return "";
}

template <typename T, int n>
std::string wgmma_of() {
  std::string wrong = compare_product<T, n, false, false>();
  // Columns along n come in boxes of 64.
  if constexpr (n >= 64) {
    wrong += compare_product<T, n, false, true>() + compare_product<T, n, true, false>() +
             compare_product<T, n, true, true>();
  }
  return wrong;
}

template <typename T>
std::string wgmma_all() {
  return wgmma_of<T, 32>() + wgmma_of<T, 128>() + wgmma_of<T, 256>();
}

// A ring of two stages that one thread fills and a warpgroup multiplies -------------------------------------------------

enum class Bug {
  kNone,
  kNoExpect,
  kNoFullWait,
  kFullParity,
  kNoEmptyWait,
  kEmptyParity,
  kNoProductWait,
  kEarlyRelease,
  kNoFence
};

template <Bug bug>
__global__ void multiply_ring(const TensorMap* maps, int rounds, float* out) {
  constexpr int kStages = 2, kRows = 64, kCols = 32, kStageBytes = (kRows + kCols) * kLine;
  unsigned char* stages = aligned_shared();
  auto* full = reinterpret_cast<uint64_t*>(stages + kStages * kStageBytes);
  uint64_t* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int round = 0; round < rounds; ++round) {
      const int stage = round % kStages;
      const auto parity = static_cast<uint32_t>(round / kStages % 2);
      if (bug != Bug::kNoEmptyWait) barrier_wait(&empty[stage], bug == Bug::kEmptyParity ? parity : parity ^ 1);
      if (bug == Bug::kNoExpect) barrier_arrive(&full[stage]);
      else barrier_arrive_expect(&full[stage], kStageBytes);
      unsigned char* to = stages + stage * kStageBytes;
      copy_box(to, &maps[0], round * kBoxCols, 0, &full[stage]);
      copy_box(to + kRows * kLine, &maps[1], round * kBoxCols, 0, &full[stage]);
    }
  }
  if (threadIdx.x < kWarpgroup) return;
  float sums[kCols / 2] = {};
  for (int round = 0; round < rounds; ++round) {
    const int stage = round % kStages;
    const auto parity = static_cast<uint32_t>(round / kStages % 2);
    if (bug != Bug::kNoFullWait) barrier_wait(&full[stage], bug == Bug::kFullParity ? parity ^ 1 : parity);
    const Layout a{kRows, false}, b{kCols, false};
    const unsigned char* from = stages + stage * kStageBytes;
    if (bug != Bug::kNoFence) wgmma_fence();
    for (int step = 0; step < 4; ++step) {
      wgmma<bf16, kCols, false, false>(sums, a.descriptor(from, 0, step), b.descriptor(from + kRows * kLine, 0, step));
    }
    wgmma_commit();
    if (bug == Bug::kEarlyRelease) wgmma_wait<1>();
    else if (bug != Bug::kNoProductWait) wgmma_wait<0>();
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[stage]);
  }
  if (bug != Bug::kNoProductWait) wgmma_wait<0>();
  for (int i = 0; i < kCols / 2; ++i) out[(threadIdx.x - kWarpgroup) * (kCols / 2) + i] = sums[i];
}

template <Bug bug>
std::string run_ring(bool broken) {
  constexpr int kRounds = 7;
  std::vector<uint16_t> ones(64 * kRounds * kBoxCols, 0x3F80);
  const int64_t cols = kRounds * kBoxCols;
  const TensorMap maps[] = {make_tensor_map({ones.data(), 64, cols, cols, DType::bf16}, 64),
                            make_tensor_map({ones.data(), 32, cols, cols, DType::bf16}, 32)};
  std::vector<float> out(64 * 32);
  const LaunchShape shape{dim3(1), dim3(2 * kWarpgroup), kPeriod + 2 * 96 * kLine + 32};
  launch(Stream{}, shape, broken ? multiply_ring<bug> : multiply_ring<Bug::kNone>, maps, kRounds, out.data());
  for (size_t i = 0; i < out.size(); ++i) {
    if (auto wrong = differs("out", static_cast<int>(i), out[i], static_cast<double>(cols)); !wrong.empty())
      return wrong;
  }
  return "";
}

}  // namespace

const std::map<std::string, std::string (*)(bool)>& hopper_bugs() {
  static const std::map<std::string, std::string (*)(bool)> all = {
      {"bytes_not_expected", run_ring<Bug::kNoExpect>},
      {"missing_wait_for_copies", run_ring<Bug::kNoFullWait>},
      {"wait_for_the_phase_before", run_ring<Bug::kFullParity>},
      {"stage_filled_while_in_use", run_ring<Bug::kNoEmptyWait>},
      {"wait_for_a_phase_that_never_ends", run_ring<Bug::kEmptyParity>},
      {"missing_wait_for_products", run_ring<Bug::kNoProductWait>},
      {"stage_given_back_before_its_products", run_ring<Bug::kEarlyRelease>},
      {"missing_fence_of_accumulators", run_ring<Bug::kNoFence>}};
  return all;
}

const std::map<std::string, std::string (*)()>& hopper_instructions() {
  static const std::map<std::string, std::string (*)()> all = {{"boxes", boxes},
                                                               {"tensor_map_limits", tensor_map_limits},
                                                               {"barrier_phases", barrier_phases},
                                                               {"wgmma_bf16", wgmma_all<bf16>},
                                                               {"wgmma_f16", wgmma_all<f16>}};
  return all;
}
