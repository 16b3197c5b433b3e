#include <cstdlib>
#include <string>

#include "core/status.h"
#include "cpu/kernels.h"

#if AT_MOE_HAVE_DOTPROD && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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
#undef AT_MOE_DECLARE_PAIRS
#undef AT_MOE_DECLARE_SET
#undef AT_MOE_DECLARE_INTEGERS

namespace {

#if defined(__x86_64__)
#if defined(__clang__) && __clang_major__ < 18
// Older clang does not know the levels by name; every processor that has these features has the rest of the level.
bool has_v2() { return __builtin_cpu_supports("sse4.2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_v4() { return has_v3() && __builtin_cpu_supports("avx512vl"); }
[[maybe_unused]] bool has_avxvnni() { return false; }
#else
bool has_v2() { return __builtin_cpu_supports("x86-64-v2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("x86-64-v3"); }
[[maybe_unused]] bool has_v4() { return __builtin_cpu_supports("x86-64-v4"); }
[[maybe_unused]] bool has_avxvnni() { return __builtin_cpu_supports("avxvnni"); }
#endif
[[maybe_unused]] bool has_avx512vnni() { return __builtin_cpu_supports("avx512vnni"); }
[[maybe_unused]] bool has_avx512bf16() { return __builtin_cpu_supports("avx512bf16"); }
#endif

#if AT_MOE_HAVE_DOTPROD
bool has_dotprod() {
#if defined(__APPLE__)
  return true;  // of every arm64 Mac
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}
#endif

// The best set, or the one that is wanted if it runs: a lower one, or one that is taken by its name alone.
KernelSet choose(const char* wanted) {
  [[maybe_unused]] const auto named = [&](const char* set) { return wanted && std::string(wanted) == set; };
  [[maybe_unused]] const auto allowed = [&](const char* set) { return !wanted || named(set); };
#if AT_MOE_HAVE_AMX
  // It has not run on a processor yet.
  if (named("amx") && has_v4() && has_avx512vnni() && amx::tiles_usable()) {
    return {"amx", avx512::kernels(), avx512vnni::integer_kernels(), &amx::pair_kernels()};
  }
#endif
#if AT_MOE_HAVE_AVX512BF16
  // A split value's two instructions do two multiply-adds, none faster than a multiply-add's own: no gain.
  if (named("avx512bf16") && has_v4() && has_avx512vnni() && has_avx512bf16()) {
    return {"avx512bf16", avx512::kernels(), avx512vnni::integer_kernels(), &avx512bf16::pair_kernels()};
  }
#endif
#if AT_MOE_HAVE_AVX512VNNI
  if (allowed("avx512vnni") && has_v4() && has_avx512vnni()) {
    return {"avx512vnni", avx512::kernels(), avx512vnni::integer_kernels()};
  }
#endif
#if AT_MOE_HAVE_AVX512
  if (allowed("avx512") && has_v4()) return {"avx512", avx512::kernels(), avx512::integer_kernels()};
#endif
#if AT_MOE_HAVE_AVXVNNI
  if (allowed("avxvnni") && has_v3() && has_avxvnni()) {
    return {"avxvnni", avx2::kernels(), avxvnni::integer_kernels()};
  }
#endif
#if AT_MOE_HAVE_AVX2
  if (allowed("avx2") && has_v3()) return {"avx2", avx2::kernels(), avx2::integer_kernels()};
#endif
#if AT_MOE_HAVE_DOTPROD
  if (allowed("dotprod") && has_dotprod()) return {"dotprod", base::kernels(), dotprod::integer_kernels()};
#endif
#if defined(__x86_64__)
  if (!has_v2()) fail(Code::kUnsupported, "this processor lacks SSE4.2");
#endif
  if (!allowed("base")) return choose(nullptr);
  return {"base", base::kernels(), base::integer_kernels()};
}

}  // namespace

const KernelSet& best_kernels() {
  static const KernelSet best = choose(std::getenv("AT_MOE_SIMD"));
  return best;
}

}  // namespace at_moe::cpu
