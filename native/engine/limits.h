#pragma once

#include "engine/requests.h"
#include "engine/scheduler.h"

namespace at_moe {

// Turns what was asked for, 0 = by default, into the sizes of the scheduler.
Limits plan_limits(const Backend& backend, const ModelConfig& config, const LoadOptions& options);

}  // namespace at_moe
