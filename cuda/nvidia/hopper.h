// Instructions of sm_90a under nvcc: barriers with transaction counts, the copy engine, products of a warpgroup. Only
// kernels whose body is compiled where kHasWgmma may call them; cuda/emulated says what each does.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/nvidia/device.h"
#include "cuda/tensor_map.h"

namespace at_moe::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

__device__ inline void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void barrier_wait(const uint64_t* barrier, uint32_t parity) {
  uint32_t ended = 0;
  while (!ended) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

__device__ inline void copy_box(void* to, const TensorMap* map, int col, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(to)),
      "l"(map), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
// Of system scope, for the host's copy has written the map.
__device__ inline void tensor_map_acquire(const TensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }

template <int kCount>
__device__ inline void registers_give() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int n>
__device__ inline void accumulators_fence(float (&d)[n]) {
#pragma unroll
  for (float& value : d) asm volatile("" : "+f"(value)::"memory");
}

// clang-format off
#define AT_MOE_REGISTERS_16                                                                                            \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define AT_MOE_REGISTERS_64                                                                                            \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                             \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                                   \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                                   \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define AT_MOE_REGISTERS_128                                                                                           \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                             \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                                   \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                                   \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                                                   \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                                                   \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                                                   \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"                                       \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define AT_MOE_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AT_MOE_D16(i) AT_MOE_D4(i), AT_MOE_D4(i + 4), AT_MOE_D4(i + 8), AT_MOE_D4(i + 12)
#define AT_MOE_D64(i) AT_MOE_D16(i), AT_MOE_D16(i + 16), AT_MOE_D16(i + 32), AT_MOE_D16(i + 48)
// One instruction: `shape`, the type of the operands, the accumulators, then the operands' places among the arguments.
#define AT_MOE_WGMMA(shape, type, registers, a_at, b_at, transpose_a_at, transpose_b_at, ...) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned." shape "k16.f32." type "." type \
               " {" registers "}, " a_at ", " b_at ", p, 1, 1, " transpose_a_at ", " transpose_b_at ";\n}"             \
               : __VA_ARGS__ : "l"(a), "l"(b), "n"(int{kTransposeA}), "n"(int{kTransposeB}))
// clang-format on

template <typename T, int n, bool kTransposeA, bool kTransposeB>
__device__ inline void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b) {
  static_assert(n == 32 || n == 128 || n == 256);
  constexpr bool kIsBf16 = std::is_same_v<T, bf16>;
  if constexpr (n == 32 && kIsBf16) {
    AT_MOE_WGMMA("m64n32", "bf16", AT_MOE_REGISTERS_16, "%16", "%17", "%18", "%19", AT_MOE_D16(0));
  } else if constexpr (n == 32) {
    AT_MOE_WGMMA("m64n32", "f16", AT_MOE_REGISTERS_16, "%16", "%17", "%18", "%19", AT_MOE_D16(0));
  } else if constexpr (n == 128 && kIsBf16) {
    AT_MOE_WGMMA("m64n128", "bf16", AT_MOE_REGISTERS_64, "%64", "%65", "%66", "%67", AT_MOE_D64(0));
  } else if constexpr (n == 128) {
    AT_MOE_WGMMA("m64n128", "f16", AT_MOE_REGISTERS_64, "%64", "%65", "%66", "%67", AT_MOE_D64(0));
  } else if constexpr (kIsBf16) {
    AT_MOE_WGMMA("m64n256", "bf16", AT_MOE_REGISTERS_128, "%128", "%129", "%130", "%131", AT_MOE_D64(0),
                 AT_MOE_D64(64));
  } else {
    AT_MOE_WGMMA("m64n256", "f16", AT_MOE_REGISTERS_128, "%128", "%129", "%130", "%131", AT_MOE_D64(0), AT_MOE_D64(64));
  }
}

#undef AT_MOE_REGISTERS_16
#undef AT_MOE_REGISTERS_64
#undef AT_MOE_REGISTERS_128
#undef AT_MOE_D4
#undef AT_MOE_D16
#undef AT_MOE_D64
#undef AT_MOE_WGMMA

}  // namespace at_moe::cuda
