#include <cstdlib>
#include <string>

#include "core/status.h"
#include "cpu/kernels.h"

namespace at_moe::cpu {

#define AT_MOE_DECLARE_SET(set) \
  namespace set {               \
  const Kernels& kernels();     \
  }
AT_MOE_DECLARE_SET(base)
#if AT_MOE_HAVE_AVX2
AT_MOE_DECLARE_SET(avx2)
#endif
#if AT_MOE_HAVE_AVX512
AT_MOE_DECLARE_SET(avx512)
#endif
#undef AT_MOE_DECLARE_SET

namespace {

#if defined(__x86_64__)
#if defined(__clang__) && __clang_major__ < 18
// Older clang does not know the levels by name; every processor that has these features has the rest of the level.
bool has_v2() { return __builtin_cpu_supports("sse4.2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_v4() { return has_v3() && __builtin_cpu_supports("avx512vl"); }
#else
bool has_v2() { return __builtin_cpu_supports("x86-64-v2"); }
[[maybe_unused]] bool has_v3() { return __builtin_cpu_supports("x86-64-v3"); }
[[maybe_unused]] bool has_v4() { return __builtin_cpu_supports("x86-64-v4"); }
#endif
#endif

const Kernels& choose() {
  // AT_MOE_SIMD names a lower set than the best, for tests.
  const char* wanted = std::getenv("AT_MOE_SIMD");
  [[maybe_unused]] const auto allowed = [&](const char* set) { return !wanted || std::string(wanted) == set; };
#if AT_MOE_HAVE_AVX512
  if (allowed("avx512") && has_v4()) return avx512::kernels();
#endif
#if AT_MOE_HAVE_AVX2
  if (allowed("avx2") && has_v3()) return avx2::kernels();
#endif
#if defined(__x86_64__)
  if (!has_v2()) fail(Code::kUnsupported, "this processor lacks SSE4.2");
#endif
  return base::kernels();
}

}  // namespace

const Kernels& best_kernels() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace at_moe::cpu
