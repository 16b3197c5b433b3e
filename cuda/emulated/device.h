// The platform under g++: CUDA's words over cuda/emulated/simt.h, and the bodies of the PTX instructions that the kernels
// use. Products round once per k-step of 16, as a tensor core may; compare with tolerances.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <vector>

#include "cuda/emulated/simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define threadIdx (::at_moe::cuda::simt::thread().index)
#define blockIdx (::at_moe::cuda::simt::block().index)
#define blockDim (::at_moe::cuda::simt::block().shape)
#define gridDim (::at_moe::cuda::simt::block().grid)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

inline void __syncthreads(const std::source_location& at = std::source_location::current()) {
  at_moe::cuda::simt::barrier({at.file_name(), at.line()});
}

namespace at_moe::cuda {

// Launches that wait to be run.
struct Recording {
  std::vector<std::function<void()>> launches;
};
using Stream = Recording*;  // null: run at once

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float widen(bf16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
inline float widen(f16 value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }

template <typename T>
T round_to(float value);
template <>
inline bf16 round_to<bf16>(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 round_to<f16>(float value) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(value))};
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

template <typename... Parameters, typename... Arguments>
void launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  const auto run = [shape, kernel, values = std::tuple<Parameters...>(Parameters(arguments)...)] {
    simt::run(shape.grid, shape.block, shape.shared_bytes, [&] { std::apply(kernel, values); });
  };
  if (stream) stream->launches.emplace_back(run);
  else run();
}

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::block().shared);
}

inline int lane_index() { return simt::thread().linear % 32; }

// Calls act(array of the 32 lanes' pointers to Exchange) once for the warp.
template <typename Exchange>
void collective(uint32_t mask, Exchange& mine, void (*act)(void** lanes)) {
  simt::warp_collective(mask, &mine, act);
}

template <typename T>
struct Shuffle {
  T value, result;
  int source;
};

template <typename T>
T shuffle(uint32_t mask, T value, int source) {
  Shuffle<T> mine{value, value, source};
  collective(mask, mine, [](void** lanes) {
    for (int i = 0; i < 32; ++i) {
      auto* to = static_cast<Shuffle<T>*>(lanes[i]);
      if (!to) continue;
      auto* from = static_cast<Shuffle<T>*>(lanes[to->source & 31]);
      if (from) to->result = from->value;
    }
  });
  return mine.result;
}

// PTX ------------------------------------------------------------------------------------------------------------------

// 16 bytes to shared memory, the ones from `bytes` on as zeros. Lands when its group is waited for.
inline void cp_async16(void* to, const void* from, int bytes) { simt::copy_async(to, from, bytes); }
inline void cp_async_commit() { simt::commit_copies(); }
// Until at most kPending groups of this thread are on their way.
template <int kPending>
void cp_async_wait() {
  simt::wait_copies(kPending);
}

struct MatrixLoad {
  uint32_t* r;
  const void* row;
};

// Four 8 x 8 matrices of 16-bit values: lane 8 m + i names row i of matrix m; lane l gets, of each matrix, the elements
// 2 (l mod 4) and the next of row l / 4.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  MatrixLoad mine{r, row};
  collective(~0u, mine, [](void** lanes) {
    auto of = [lanes](int i) { return static_cast<MatrixLoad*>(lanes[i]); };
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        std::memcpy(&of(l)->r[m], static_cast<const char*>(of(8 * m + l / 4)->row) + 4 * (l % 4), 4);
      }
    }
  });
}

// The same, each matrix transposed.
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  MatrixLoad mine{r, row};
  collective(~0u, mine, [](void** lanes) {
    auto of = [lanes](int i) { return static_cast<MatrixLoad*>(lanes[i]); };
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
          std::memcpy(&pair[j], static_cast<const char*>(of(8 * m + 2 * (l % 4) + j)->row) + 2 * (l / 4), 2);
        }
        std::memcpy(&of(l)->r[m], pair, 4);
      }
    }
  });
}

struct MatrixProduct {
  float* d;
  const uint32_t *a, *b;
};

// d [16, 8] += a [16, 16] b [16, 8], a by rows and b by columns, in the fragments of PTX's mma.m16n8k16.
template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MatrixProduct mine{d, a, b};
  collective(~0u, mine, [](void** lanes) {
    auto of = [lanes](int i) { return static_cast<MatrixProduct*>(lanes[i]); };
    auto half = [](uint32_t pair, int h) { return widen(T{static_cast<uint16_t>(pair >> (16 * h))}); };
    float left[16][16], right[16][8];
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, col = 2 * (l % 4);
      for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < 4; ++i) left[row + i % 2 * 8][col + h + i / 2 * 8] = half(of(l)->a[i], h);
        for (int i = 0; i < 2; ++i) right[col + h + i * 8][row] = half(of(l)->b[i], h);
      }
    }
    float sum[16][8] = {};
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) sum[m][n] += left[m][k] * right[k][n];
      }
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) of(l)->d[i] += sum[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
    }
  });
}

inline uint32_t load_acquire(const uint32_t* pointer) {
  simt::interleave();
  return *pointer;
}
inline void add_release(uint32_t* pointer, uint32_t value) {
  simt::interleave();
  *pointer += value;
}
inline void spin_pause() { simt::spin(); }

}  // namespace at_moe::cuda

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return at_moe::cuda::shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int other) {
  return at_moe::cuda::shuffle(mask, value, at_moe::cuda::lane_index() ^ other);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by) {
  const int lane = at_moe::cuda::lane_index(), from = lane + static_cast<int>(by);
  return at_moe::cuda::shuffle(mask, value, from < 32 ? from : lane);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by) {
  const int lane = at_moe::cuda::lane_index(), from = lane - static_cast<int>(by);
  return at_moe::cuda::shuffle(mask, value, from >= 0 ? from : lane);
}
inline unsigned __ballot_sync(uint32_t mask, int predicate) {
  struct Ballot {
    bool mine;
    unsigned all;
  } ballot{predicate != 0, 0};
  at_moe::cuda::collective(mask, ballot, [](void** lanes) {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] && static_cast<Ballot*>(lanes[i])->mine) all |= 1u << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (lanes[i]) static_cast<Ballot*>(lanes[i])->all = all;
    }
  });
  return ballot.all;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline void __syncwarp(uint32_t mask = ~0u) { __ballot_sync(mask, 0); }
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __ffs(unsigned value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline void __threadfence() { at_moe::cuda::simt::interleave(); }

template <typename T>
T atomicAdd(T* pointer, T value) {
  at_moe::cuda::simt::interleave();
  const T old = *pointer;
  *pointer = old + value;
  return old;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::max;
using std::min;
// Sine and cosine of pi x.
inline void sincospif(float x, float* sine, float* cosine) {
  constexpr double kPi = 3.14159265358979323846;
  *sine = static_cast<float>(std::sin(kPi * x));
  *cosine = static_cast<float>(std::cos(kPi * x));
}
