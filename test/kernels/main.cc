// Compares the kernels of every instruction set that was built and that this processor runs with plain loops. A line for
// each set and check; exit code 1 when a check failed.
#include <cstdio>

#include "test/kernels/check.h"

using namespace at_moe::cpu;

namespace {

struct Check {
  const char* name;
  void (*run)(const KernelSet&);
};

constexpr Check kChecks[] = {
    {"table", check_table},
    {"multiply", check_multiply},
    {"lines", check_lines},
    {"widen", check_widen},
    {"transpose", check_transpose},
    {"pack", check_pack},
    {"pack blocks", check_pack_blocks},
    {"softmax", check_softmax},
    {"softmax backward", check_softmax_backward},
    {"blend and dot", check_blend_and_dot},
    {"swiglu", check_swiglu},
    {"exponentials", check_exponentials},
    {"probes", check_probes},
    {"integers", check_integers},
    {"pairs", check_pairs},
    {"turn", check_turn},
};

bool passes(const KernelSet& set) {
  bool all = true;
  for (const Check& check : kChecks) {
    if (!set.pairs && (check.run == check_pairs || check.run == check_turn)) continue;
    try {
      check.run(set);
      std::printf("ok       %s, %s\n", set.name, check.name);
    } catch (const std::exception& error) {
      std::printf("FAILED   %s, %s: %s\n", set.name, check.name, error.what());
      all = false;
    }
  }
  return all;
}

}  // namespace

int main() {
  int status = 0;
  for (const BuiltSet& set : built_sets()) {
    if (!set.runs()) std::printf("skipped  %s: this processor lacks %s\n", set.name, set.needs);
    else if (!passes(set.get())) status = 1;
  }
  return status;
}
