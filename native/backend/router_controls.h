// Checks of a request's routing controls that every device makes on the host before it routes.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/ops/router.h"

namespace at_moe {

// One flag per group: denied by name, or because none of its experts is left. Fails with kRouting when that is every group,
// and when weights that were set are negative, denied, or above 1 in sum.
std::vector<uint8_t> denied_groups(const RouterShape& shape, const RouterControls& controls);

}  // namespace at_moe
