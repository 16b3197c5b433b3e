#include <cstdlib>
#include <string_view>

#include "core/status.h"
#include "cpu/kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace at_moe::cpu {

#define AT_MOE_DECLARE_INTEGERS(set)       \
  namespace set {                          \
  const IntegerKernels& integer_kernels(); \
  }
#define AT_MOE_DECLARE_SET(set) \
  namespace set {               \
  const Kernels& kernels();     \
  }                             \
  AT_MOE_DECLARE_INTEGERS(set)
#define AT_MOE_DECLARE_PAIRS(set)    \
  namespace set {                    \
  const PairKernels& pair_kernels(); \
  }
AT_MOE_DECLARE_SET(base)
#if AT_MOE_HAVE_AVX2
AT_MOE_DECLARE_SET(avx2)
#endif
#if AT_MOE_HAVE_AVXVNNI
AT_MOE_DECLARE_INTEGERS(avxvnni)
#endif
#if AT_MOE_HAVE_AVX512
AT_MOE_DECLARE_SET(avx512)
#endif
#if AT_MOE_HAVE_AVX512VNNI
AT_MOE_DECLARE_INTEGERS(avx512vnni)
#endif
#if AT_MOE_HAVE_AVX512BF16
AT_MOE_DECLARE_PAIRS(avx512bf16)
#endif
#if AT_MOE_HAVE_AMX
AT_MOE_DECLARE_PAIRS(amx)
namespace amx {
bool tiles_usable();
}
#endif
#if AT_MOE_HAVE_DOTPROD
AT_MOE_DECLARE_INTEGERS(dotprod)
#endif
#if AT_MOE_HAVE_I8MM
AT_MOE_DECLARE_INTEGERS(i8mm)
#endif
#if AT_MOE_HAVE_NEONBF16
AT_MOE_DECLARE_PAIRS(neonbf16)
#endif
#undef AT_MOE_DECLARE_PAIRS
#undef AT_MOE_DECLARE_SET
#undef AT_MOE_DECLARE_INTEGERS

namespace {

#if defined(__x86_64__)
constexpr const char* kBaseNeeds = "SSE4.2";
#if defined(__clang__) && __clang_major__ < 18
// Older clang does not know the levels by name; every processor that has these features has the rest of the level.
bool has_base() { return __builtin_cpu_supports("sse4.2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_v4() { return has_v3() && __builtin_cpu_supports("avx512vl"); }
[[maybe_unused]] bool has_avxvnni() { return false; }
#else
bool has_base() { return __builtin_cpu_supports("x86-64-v2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("x86-64-v3"); }
[[maybe_unused]] bool has_v4() { return __builtin_cpu_supports("x86-64-v4"); }
[[maybe_unused]] bool has_avxvnni() { return has_v3() && __builtin_cpu_supports("avxvnni"); }
#endif
[[maybe_unused]] bool has_avx512vnni() { return has_v4() && __builtin_cpu_supports("avx512vnni"); }
[[maybe_unused]] bool has_avx512bf16() { return has_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
#else
constexpr const char* kBaseNeeds = "";
bool has_base() { return true; }
#endif
#if AT_MOE_HAVE_AMX
bool has_amx() { return has_avx512vnni() && amx::tiles_usable(); }
#endif

#if defined(__aarch64__)
#if defined(__linux__)
[[maybe_unused]] bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
[[maybe_unused]] bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
[[maybe_unused]] bool has_bf16() { return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0; }
#elif defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
[[maybe_unused]] bool has_dotprod() { return true; }  // every arm64 Mac
[[maybe_unused]] bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
[[maybe_unused]] bool has_bf16() { return has("hw.optional.arm.FEAT_BF16"); }
#else
[[maybe_unused]] bool has_dotprod() { return false; }
[[maybe_unused]] bool has_i8mm() { return false; }
[[maybe_unused]] bool has_bf16() { return false; }
#endif
#if AT_MOE_HAVE_NEONBF16
bool has_neonbf16() { return has_i8mm() && has_bf16(); }
#endif
#endif

constexpr BuiltSet kSets[] = {
#if AT_MOE_HAVE_AMX
    // It has not run on a processor yet.
    {"amx", "AMX tiles of bf16", true, has_amx, avx512::kernels, avx512vnni::integer_kernels, amx::pair_kernels},
#endif
#if AT_MOE_HAVE_AVX512BF16
    // A split value's two instructions do two multiply-adds, none faster than a multiply-add's own: no gain.
    {"avx512bf16", "AVX512_BF16", true, has_avx512bf16, avx512::kernels, avx512vnni::integer_kernels,
     avx512bf16::pair_kernels},
#endif
#if AT_MOE_HAVE_AVX512VNNI
    {"avx512vnni", "AVX512_VNNI", false, has_avx512vnni, avx512::kernels, avx512vnni::integer_kernels},
#endif
#if AT_MOE_HAVE_AVX512
    {"avx512", "AVX-512 of x86-64-v4", false, has_v4, avx512::kernels, avx512::integer_kernels},
#endif
#if AT_MOE_HAVE_AVXVNNI
    {"avxvnni", "AVX-VNNI", false, has_avxvnni, avx2::kernels, avxvnni::integer_kernels},
#endif
#if AT_MOE_HAVE_AVX2
    {"avx2", "AVX2 and FMA of x86-64-v3", false, has_v3, avx2::kernels, avx2::integer_kernels},
#endif
#if AT_MOE_HAVE_NEONBF16
    // Not measured yet.
    {"neonbf16", "FEAT_BF16", true, has_neonbf16, base::kernels, i8mm::integer_kernels, neonbf16::pair_kernels},
#endif
#if AT_MOE_HAVE_I8MM
    {"i8mm", "FEAT_I8MM", false, has_i8mm, base::kernels, i8mm::integer_kernels},
#endif
#if AT_MOE_HAVE_DOTPROD
    {"dotprod", "FEAT_DotProd", false, has_dotprod, base::kernels, dotprod::integer_kernels},
#endif
    {"base", kBaseNeeds, false, has_base, base::kernels, base::integer_kernels},
};

KernelSet choose(const char* wanted) {
  for (const BuiltSet& set : kSets) {
    const bool allowed = wanted ? std::string_view(wanted) == set.name : !set.by_name;
    if (allowed && set.runs()) return set.get();
  }
  if (wanted) return choose(nullptr);
  fail(Code::kUnsupported, "this processor lacks ", kBaseNeeds);
}

}  // namespace

std::span<const BuiltSet> built_sets() { return kSets; }

const KernelSet& best_kernels() {
  static const KernelSet best = choose(std::getenv("AT_MOE_SIMD"));
  return best;
}

}  // namespace at_moe::cpu
