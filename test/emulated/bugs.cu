// Kernels with planted bugs of the kinds that the emulated device has to find.
#include <vector>

#include "cuda/platform.h"
#include "test/emulated/check.h"

using namespace at_moe::cuda;

namespace {

constexpr int kThreads = 128;

// Sum of a block's values as a tree; the bug: the values are read before all are written.
template <bool kBroken>
__global__ void tree_sum(const float* values, float* sum) {
  auto* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = values[t];
  if constexpr (!kBroken) __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    __syncthreads();
  }
  if (t == 0) *sum = shared[0];
}

template <bool kBroken>
std::string missing_barrier_before_read() {
  std::vector<float> values(kThreads);
  float sum = 0, expected = 0;
  for (int i = 0; i < kThreads; ++i) expected += values[i] = static_cast<float>(i + 1);
  launch(Stream{}, {dim3(1), dim3(kThreads), kThreads * sizeof(float)}, tree_sum<kBroken>, values.data(), &sum);
  return differs("sum", 0, sum, expected);
}

// Every thread hands its value to the next, twice; the bug: a value is overwritten before all have read.
template <bool kBroken>
__global__ void rotate(float* values) {
  auto* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  float value = values[t];
  for (int round = 0; round < 2; ++round) {
    shared[t] = value;
    __syncthreads();
    value = shared[(t + 1) % kThreads];
    if constexpr (!kBroken) __syncthreads();
  }
  values[t] = value;
}

template <bool kBroken>
std::string missing_barrier_before_write() {
  std::vector<float> values(kThreads);
  for (int i = 0; i < kThreads; ++i) values[i] = static_cast<float>(i);
  launch(Stream{}, {dim3(1), dim3(kThreads), kThreads * sizeof(float)}, rotate<kBroken>, values.data());
  for (int i = 0; i < kThreads; ++i) {
    if (std::string wrong = differs("values", i, values[i], (i + 2) % kThreads); !wrong.empty()) return wrong;
  }
  return "";
}

// The bug: half of a warp waits at the barrier, the other half in a shuffle of all lanes.
template <bool kBroken>
__global__ void half_at_barrier(int* sum) {
  int value = static_cast<int>(threadIdx.x);
  if (!kBroken || threadIdx.x % 32 < 16) __syncthreads();
  for (int other = 16; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
  if (threadIdx.x == 0) *sum = value;
}

template <bool kBroken>
std::string divergent_barrier() {
  int sum = 0;
  launch(Stream{}, {dim3(1), dim3(64)}, half_at_barrier<kBroken>, &sum);
  return differs("sum", 0, sum, 31 * 16);
}

// The bug: the two branches have a barrier of their own each.
template <bool kBroken>
__global__ void two_barriers(int* sum) {
  auto* shared = shared_memory<int>();
  shared[threadIdx.x] = 1;
  if (kBroken && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (threadIdx.x == 0) *sum = shared[0] + shared[kThreads - 1];
}

template <bool kBroken>
std::string barriers_of_branches() {
  int sum = 0;
  launch(Stream{}, {dim3(1), dim3(kThreads), kThreads * sizeof(int)}, two_barriers<kBroken>, &sum);
  return differs("sum", 0, sum, 2);
}

// Tiles of 4 values a thread through two buffers; the bug: one group of copies too few is waited for.
constexpr int kTiles = 6;
template <bool kBroken>
__global__ void pipeline(const float* values, float* sums) {
  constexpr int kTile = 4 * kThreads;
  auto* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  auto fetch = [&](int tile) {
    if (tile < kTiles) cp_async16(shared + tile % 2 * kTile + 4 * t, values + tile * kTile + 4 * t, 16);
    cp_async_commit();
  };
  float sum = 0;
  fetch(0);
  for (int tile = 0; tile < kTiles; ++tile) {
    fetch(tile + 1);
    cp_async_wait<kBroken ? 2 : 1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum += shared[tile % 2 * kTile + (4 * t + 4 + i) % kTile];
    __syncthreads();
  }
  sums[t] = sum;
}

template <bool kBroken>
std::string too_few_copies_waited_for() {
  std::vector<float> values(kTiles * 4 * kThreads, 1.0f), sums(kThreads);
  launch(Stream{}, {dim3(1), dim3(kThreads), 2 * 4 * kThreads * sizeof(float)}, pipeline<kBroken>, values.data(),
         sums.data());
  for (int i = 0; i < kThreads; ++i) {
    if (std::string wrong = differs("sums", i, sums[i], 4 * kTiles); !wrong.empty()) return wrong;
  }
  return "";
}

// The first block to start writes, the others add what it wrote to their own; the bug: they do not wait for it.
template <bool kBroken>
__global__ void after_the_first(uint32_t* ticket, uint32_t* done, float* shared_values, float* sums) {
  auto* mine = shared_memory<uint32_t>();
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) *mine = atomicAdd(ticket, 1u);
  __syncthreads();
  if (*mine == 0) {
    shared_values[t] = 1;
    __syncthreads();
    if (t == 0) add_release(done, 1);
    return;
  }
  if (!kBroken && t == 0) {
    while (load_acquire(done) == 0) spin_pause();
  }
  __syncthreads();
  sums[*mine * kThreads + t] = shared_values[t] + 1;
}

template <bool kBroken>
std::string missing_wait_for_a_block() {
  constexpr int kBlocks = 8;
  uint32_t ticket = 0, done = 0;
  std::vector<float> values(kThreads, -1000.0f), sums(kBlocks * kThreads, 2.0f);
  launch(Stream{}, {dim3(kBlocks), dim3(kThreads), sizeof(uint32_t)}, after_the_first<kBroken>, &ticket, &done,
         values.data(), sums.data());
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    if (std::string wrong = differs("sums", i, sums[i], 2); !wrong.empty()) return wrong;
  }
  return "";
}

// The bug: the last thread writes behind the buffer. Only AddressSanitizer sees it.
template <bool kBroken>
__global__ void fill(float* values, int count) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (kBroken ? i <= count : i < count) values[i] = 1;
}

template <bool kBroken>
std::string overrun() {
  constexpr int kCount = 2 * kThreads + 5;
  std::vector<float> values(kCount);
  launch(Stream{}, {dim3(3), dim3(kThreads)}, fill<kBroken>, values.data(), kCount);
  for (int i = 0; i < kCount; ++i) {
    if (std::string wrong = differs("values", i, values[i], 1); !wrong.empty()) return wrong;
  }
  return "";
}

// The bug: the rest of a row's last piece, which nobody wrote, is multiplied by 0 instead of left out.
template <bool kBroken>
__global__ void masked_sum(const float* values, int count, float* sum) {
  auto* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < count) shared[t] = values[t];
  __syncthreads();
  if (t != 0) return;
  float total = 0;
  for (int i = 0; i < kThreads; ++i) {
    if (kBroken) total += shared[i] * (i < count ? 1.0f : 0.0f);
    else if (i < count) total += shared[i];
  }
  *sum = total;
}

template <bool kBroken>
std::string unwritten_shared_memory() {
  std::vector<float> values(100, 1.0f);
  float sum = 0;
  launch(Stream{}, {dim3(1), dim3(kThreads), kThreads * sizeof(float)}, masked_sum<kBroken>, values.data(), 100, &sum);
  return differs("sum", 0, sum, 100);
}

}  // namespace

#define AT_MOE_BUG(name)                                                     \
  {                                                                          \
#name, [](bool broken) { return broken ? name<true>() : name<false>(); } \
  }

const std::map<std::string, std::string (*)(bool)>& bugs() {
  static const std::map<std::string, std::string (*)(bool)> all = {
      AT_MOE_BUG(missing_barrier_before_read), AT_MOE_BUG(missing_barrier_before_write),
      AT_MOE_BUG(divergent_barrier),           AT_MOE_BUG(barriers_of_branches),
      AT_MOE_BUG(too_few_copies_waited_for),   AT_MOE_BUG(missing_wait_for_a_block),
      AT_MOE_BUG(unwritten_shared_memory),     AT_MOE_BUG(overrun)};
  return all;
}
