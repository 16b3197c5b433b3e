// The tile registers of AMX: eight of at most 16 rows of 64 bytes. `load` and `store` take rows `stride` bytes apart;
// `dot<c, a, b>` adds to 16 f32 columns of c the products of a's rows of 32 bf16 by b's 16 lines of [16 columns][2].
// Shapes belong to a thread, which gives them back when it has done, so that a switch of threads need not save tiles.
// The products treat denormals as zeros, round to the nearest, and sum a tile's even and odd inputs apart before they
// join c.
#pragma once

#include <cstdint>

#if AT_MOE_EMULATED_TILES
#include "cpu/simd/tiles_emulated.h"
#else
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace at_moe::cpu::AT_MOE_SIMD_NS {

// The operand of ldtilecfg.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Instructions by their names, with the tiles' numbers: gcc 12's intrinsics do not say that they read memory.
struct Tiles {
  // Whether processor and system have them; asks the system for the process's leave to use them.
  static bool usable() {
    constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kBf16) == 0) return false;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }

  static void configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  static void release() { asm volatile("tilerelease"); }

  template <int tile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }
  template <int c, int a, int b>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

}  // namespace at_moe::cpu::AT_MOE_SIMD_NS
#endif
