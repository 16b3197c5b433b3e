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

const Kernels& choose() {
  // AT_MOE_SIMD names a lower set than the best, for tests.
  const char* wanted = std::getenv("AT_MOE_SIMD");
  [[maybe_unused]] const auto allowed = [&](const char* set) { return !wanted || std::string(wanted) == set; };
#if AT_MOE_HAVE_AVX512
  if (allowed("avx512") && __builtin_cpu_supports("x86-64-v4")) return avx512::kernels();
#endif
#if AT_MOE_HAVE_AVX2
  if (allowed("avx2") && __builtin_cpu_supports("x86-64-v3")) return avx2::kernels();
#endif
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("x86-64-v2")) fail(Code::kUnsupported, "this processor lacks SSE4.2");
#endif
  return base::kernels();
}

}  // namespace

const Kernels& best_kernels() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace at_moe::cpu
