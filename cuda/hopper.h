// Instructions that only sm_90a has, beside those of cuda/platform.h: kernels that use them have a body where kHasWgmma.
#pragma once

#include "cuda/platform.h"

#ifdef AT_MOE_EMULATED
#include "cuda/emulated/hopper.h"
#else
#include "cuda/nvidia/hopper.h"
#endif
