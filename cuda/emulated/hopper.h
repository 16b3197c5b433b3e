// Instructions of sm_90a on the emulated device.
#pragma once

#include "cuda/emulated/barrier.h"
#include "cuda/emulated/shared.h"
#include "cuda/emulated/tensor_copy.h"
#include "cuda/emulated/wgmma.h"

namespace at_moe::cuda {

inline constexpr bool kHasWgmma = true;

}  // namespace at_moe::cuda
