#include <algorithm>
#include <cmath>

#include "backend/ops/router.h"
#include "core/status.h"

namespace at_moe {

namespace {

constexpr float kSetTolerance = 1e-5f;

// One stage, or the experts of one group.
void check_set(const char* what, const float* set, const uint8_t* denied, int32_t n) {
  float total = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (std::isnan(set[i])) continue;
    if (!(set[i] >= 0)) fail(Code::kRouting, "the weight set for ", what, " ", i, " is ", set[i]);
    if (set[i] > 0 && denied && denied[i]) fail(Code::kRouting, what, " ", i, " is denied and has a weight");
    total += set[i];
  }
  if (total > 1 + kSetTolerance) fail(Code::kRouting, "the weights set for a stage sum to ", total, ", more than 1");
}

}  // namespace

std::vector<uint8_t> denied_groups(const RouterShape& shape, const RouterControls& controls) {
  require(static_cast<int32_t>(shape.group_start.size()) == shape.groups + 1, "router: group_start has ",
          shape.group_start.size(), " entries for ", shape.groups, " groups");
  std::vector<uint8_t> denied(static_cast<size_t>(shape.groups));
  bool any = false;
  for (int32_t g = 0; g < shape.groups; ++g) {
    const int32_t begin = shape.group_start[g], n = shape.group_start[g + 1] - begin;
    require(n > 0, "router: group ", g, " has no expert");
    const uint8_t* own = controls.expert_denied.empty() ? nullptr : controls.expert_denied.data() + begin;
    const bool none_left = own && std::all_of(own, own + n, [](uint8_t d) { return d != 0; });
    denied[g] = none_left || (!controls.group_denied.empty() && controls.group_denied[g]);
    any |= !denied[g];
    if (!controls.expert_set.empty()) check_set("expert", controls.expert_set.data() + begin, own, n);
  }
  if (!any) fail(Code::kRouting, "every expert is denied");
  if (!controls.group_set.empty()) check_set("group", controls.group_set.data(), denied.data(), shape.groups);
  return denied;
}

}  // namespace at_moe
