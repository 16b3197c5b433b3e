#include "mixture/source.h"

#include "core/status.h"

namespace at_moe {

namespace {

constexpr std::array<const char*, kModules> kModuleNames = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                            "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                            "mlp.down_proj"};

}  // namespace

const char* module_name(int module) { return kModuleNames[static_cast<size_t>(module)]; }

int module_by_name(const std::string& name) {
  for (int module = 0; module < kModules; ++module) {
    const std::string full = module_name(module);
    if (full.substr(full.find('.') + 1) == name) return module;
  }
  fail(Code::kUnsupported, "no linear module is named ", name);
}

}  // namespace at_moe
