// What the emulated instructions do, against plain loops. Fragments are indexed as the PTX manual defines them: element i
// of A is in register i / 2, of row lane / 4 (+ 8 for i mod 4 >= 2) and column 2 (lane mod 4) + i mod 2 (+ 8 for i >= 4).
#include <random>
#include <vector>

#include "cuda/platform.h"
#include "test/emulated/check.h"

using namespace at_moe::cuda;

namespace {

constexpr int kWarp = 32;

template <typename T>
std::vector<T> random_values(int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = round_to<T>(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  return values;
}

template <typename T>
uint32_t pair(T low, T high) {
  return low.bits | uint32_t{high.bits} << 16;
}

// d [16, 8] = c + a [16, 16] b [16, 8] for row-major matrices.
template <typename T>
__global__ void product(const T* a, const T* b, const float* c, float* d) {
  const int row = static_cast<int>(threadIdx.x) / 4, col = static_cast<int>(threadIdx.x) % 4 * 2;
  uint32_t left[4], right[2];
  float sum[4];
  for (int i = 0; i < 8; i += 2) {
    const T* from = a + (row + (i % 4 >= 2 ? 8 : 0)) * 16 + col + (i >= 4 ? 8 : 0);
    left[i / 2] = pair(from[0], from[1]);
  }
  for (int i = 0; i < 4; i += 2) {
    const T* from = b + (col + (i >= 2 ? 8 : 0)) * 8 + row;
    right[i / 2] = pair(from[0], from[8]);
  }
  for (int i = 0; i < 4; ++i) sum[i] = c[(row + (i >= 2 ? 8 : 0)) * 8 + col + i % 2];
  mma_m16n8k16<T>(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(row + (i >= 2 ? 8 : 0)) * 8 + col + i % 2] = sum[i];
}

template <typename T>
std::string compare_product(const std::vector<T>& a, const std::vector<T>& b, int columns, const std::vector<float>& c,
                            const std::vector<float>& d) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < columns; ++n) {
      const int at = m * columns + n;
      double expected = c[static_cast<size_t>(at)];
      for (int k = 0; k < 16; ++k)
        expected += double{widen(a[static_cast<size_t>(m * 16 + k)])} * widen(b[static_cast<size_t>(k * columns + n)]);
      if (auto wrong = differs("d", at, d[static_cast<size_t>(at)], expected, 1e-5); !wrong.empty()) return wrong;
    }
  }
  return "";
}

template <typename T>
std::string mma() {
  const auto a = random_values<T>(16 * 16, 1), b = random_values<T>(16 * 8, 2);
  std::vector<float> c(16 * 8), d(16 * 8);
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i) / 16;
  launch(Stream{}, {dim3(1), dim3(kWarp)}, product<T>, a.data(), b.data(), c.data(), d.data());
  return compare_product(a, b, 8, c, d);
}

// d [16, 16] = a [16, 16] b [16, 16], both row-major in shared memory: a by ldmatrix, b by its transposing form.
template <typename T>
__global__ void product_by_ldmatrix(const T* a, const T* b, float* d) {
  constexpr int kStride = 24;
  T* left = shared_memory<T>();
  T* right = left + 16 * kStride;
  const int lane = static_cast<int>(threadIdx.x), row = lane / 4, col = lane % 4 * 2;
  for (int i = lane; i < 256; i += kWarp) {
    left[i / 16 * kStride + i % 16] = a[i];
    right[i / 16 * kStride + i % 16] = b[i];
  }
  __syncwarp();
  uint32_t from_a[4], from_b[4];
  const int at = lane % 16 * kStride + lane / 16 * 8;
  ldmatrix_x4(from_a, left + at);
  ldmatrix_x4_trans(from_b, right + at);
  for (int half = 0; half < 2; ++half) {
    float sum[4] = {};
    mma_m16n8k16<T>(sum, from_a, {from_b[2 * half], from_b[2 * half + 1]});
    for (int i = 0; i < 4; ++i) d[(row + (i >= 2 ? 8 : 0)) * 16 + half * 8 + col + i % 2] = sum[i];
  }
}

template <typename T>
std::string ldmatrix() {
  const auto a = random_values<T>(256, 3), b = random_values<T>(256, 4);
  std::vector<float> d(256);
  launch(Stream{}, {dim3(1), dim3(kWarp), 2 * 16 * 24 * sizeof(T)}, product_by_ldmatrix<T>, a.data(), b.data(),
         d.data());
  return compare_product(a, b, 16, std::vector<float>(256), d);
}

struct Shuffled {
  int from_5, down;
  float half_sum;
  double all_sum;
};

// The halves of a warp shuffle among themselves, the upper one more often.
__global__ void shuffle_all(Shuffled* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Shuffled mine;
  mine.from_5 = __shfl_sync(~0u, 100 * lane, 5);
  mine.down = __shfl_down_sync(~0u, lane, 3);
  const uint32_t half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  mine.half_sum = static_cast<float>(lane);
  for (int other = 8; other > 0; other /= 2) mine.half_sum += __shfl_xor_sync(half, mine.half_sum, other);
  if (lane >= 16) mine.half_sum = __shfl_sync(half, mine.half_sum + 1, 20);
  mine.all_sum = 1e15 + lane;
  for (int other = 16; other > 0; other /= 2) mine.all_sum += __shfl_xor_sync(~0u, mine.all_sum, other);
  out[threadIdx.x] = mine;
}

std::string shuffles() {
  constexpr int kThreads = 2 * kWarp;
  std::vector<Shuffled> out(kThreads);
  launch(Stream{}, {dim3(1), dim3(kThreads)}, shuffle_all, out.data());
  for (int i = 0; i < kThreads; ++i) {
    const Shuffled& mine = out[static_cast<size_t>(i)];
    const int lane = i % kWarp;
    const std::string wrong =
        differs("from lane 5", i, mine.from_5, 500) + differs("down", i, mine.down, lane < 29 ? lane + 3 : lane) +
        differs("half", i, mine.half_sum, lane < 16 ? 120 : 377) + differs("all", i, mine.all_sum, 32e15 + 496);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

struct Voted {
  uint32_t all, some, any, every;
};

// Even and odd lanes vote apart, at the same time.
__global__ void vote(Voted* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const uint32_t mask = lane % 2 == 0 ? 0x55555555u : 0xAAAAAAAAu;
  Voted mine;
  mine.all = __ballot_sync(~0u, lane < 7);
  if (lane % 2 == 0) mine.some = __ballot_sync(mask, lane >= 16);
  else mine.some = __ballot_sync(mask, lane < 4);
  mine.any = static_cast<uint32_t>(__any_sync(mask, lane == 9));
  mine.every = static_cast<uint32_t>(__all_sync(mask, lane % 2 == 0));
  out[lane] = mine;
}

std::string ballots() {
  std::vector<Voted> out(kWarp);
  launch(Stream{}, {dim3(1), dim3(kWarp)}, vote, out.data());
  for (int i = 0; i < kWarp; ++i) {
    const Voted& mine = out[static_cast<size_t>(i)];
    const bool even = i % 2 == 0;
    const std::string wrong = differs("all", i, mine.all, 0x7F) +
                              differs("some", i, mine.some, even ? 0x55550000u : 0xAu) +
                              differs("any", i, mine.any, even ? 0 : 1) + differs("every", i, mine.every, even ? 1 : 0);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

__global__ void copy_part(const float* from, float* before, float* after, int bytes) {
  auto* shared = shared_memory<float>();
  cp_async16(shared, from, bytes);
  cp_async_commit();
  for (int i = 0; i < 4; ++i) before[i] = shared[i];
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) after[i] = shared[i];
}

// Copies land at their wait, and zeros fill what is not copied.
std::string copies() {
  for (int count = 0; count <= 4; ++count) {
    alignas(16) const float from[4] = {1, 2, 3, 4};
    float before[4], after[4];
    launch(Stream{}, {dim3(1), dim3(1), 16}, copy_part, from, before, after, count * 4);
    for (int i = 0; i < 4; ++i) {
      if (before[i] == before[i]) return "a copy landed before its wait";
      if (auto wrong = differs("after", i, after[i], i < count ? from[i] : 0); !wrong.empty()) return wrong;
    }
  }
  return "";
}

__global__ void count_up(int* counter, int* seen) {
  const int old = atomicAdd(counter, 1);
  seen[old] += 1;
}

std::string atomics() {
  constexpr int kCount = 6 * 64;
  int counter = 0;
  std::vector<int> seen(kCount);
  launch(Stream{}, {dim3(3, 2), dim3(32, 2)}, count_up, &counter, seen.data());
  for (int i = 0; i < kCount; ++i) {
    if (auto wrong = differs("seen", i, seen[static_cast<size_t>(i)], 1); !wrong.empty()) return wrong;
  }
  return differs("counter", 0, counter, kCount);
}

// Every 16-bit pattern survives widening and rounding; halves go to even.
template <typename T>
std::string rounding_of(uint32_t infinity, float one_and_a_half_ulp, float two_ulp) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & infinity) == infinity && (bits & ~(infinity | 0x8000u)) != 0) continue;  // NaN
    const T value{static_cast<uint16_t>(bits)};
    if (round_to<T>(widen(value)).bits != bits) return "pattern " + std::to_string(bits) + " changes";
  }
  return differs("tie", 0, widen(round_to<T>(one_and_a_half_ulp)), two_ulp);
}

std::string rounding() {
  return rounding_of<bf16>(0x7F80, 1 + 3 * 0x1p-8f, 1 + 0x1p-6f) +
         rounding_of<f16>(0x7C00, 1 + 3 * 0x1p-11f, 1 + 0x1p-9f);
}

}  // namespace

const std::map<std::string, std::string (*)()>& instructions() {
  static const std::map<std::string, std::string (*)()> all = {{"mma_bf16", mma<bf16>},
                                                               {"mma_f16", mma<f16>},
                                                               {"ldmatrix_bf16", ldmatrix<bf16>},
                                                               {"ldmatrix_f16", ldmatrix<f16>},
                                                               {"shuffles", shuffles},
                                                               {"ballots", ballots},
                                                               {"copies", copies},
                                                               {"atomics", atomics},
                                                               {"rounding", rounding}};
  return all;
}
