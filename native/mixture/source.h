// What lib hands over to build a mixture: checked shapes and names, no device memory. mixture-spec sections 1, 2 and 6.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backend/ops/router.h"
#include "core/tensor_source.h"

namespace at_moe {

// The linear modules of a layer, in the order of their groups: q|k|v, o, gate|up, down.
enum Module : int { kQ, kK, kV, kO, kGate, kUp, kDown, kModules };
enum LinearGroup : int { kGroupQkv, kGroupO, kGroupGateUp, kGroupDown, kLinearGroups };

inline constexpr std::array<int, kLinearGroups + 1> kGroupStart = {kQ, kO, kGate, kDown, kModules};
const char* module_name(int module);          // "self_attn.q_proj", …
int module_by_name(const std::string& name);  // "q_proj" -> kQ; fails with kUnsupported

struct LoraSource {
  int layer = 0;
  int module = 0;
  int rank = 0;
  float scaling = 1;
  TensorSource a, b;  // [rank, d_in], [d_out, rank]
};

struct AdapterSource {
  std::vector<LoraSource> modules;
};

enum class RoutingScope { kToken, kSequence };

struct MixtureSource {
  RouterShape shape;
  std::vector<AdapterSource> experts;  // in group order
  std::optional<AdapterSource> general;
  RoutingScope scope = RoutingScope::kSequence;
  RouterOptions options;
  bool learned_balance = false, learned_scale = false;
  float balance = 1, scale = 1;  // constants when not learned
  // By their names in router.safetensors; tensors that are absent start at zero.
  std::map<std::string, TensorSource> router;
  bool has_router = true;          // false: always explicit weights (an adapter alone)
  std::optional<Storage> storage;  // of the packed adapters; default: the widest of the sources
};

}  // namespace at_moe
