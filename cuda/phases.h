// The kernels that run phases (cuda/phase.h).
#pragma once

#include "core/dtype.h"
#include "cuda/platform.h"

namespace at_moe::cuda {

// A kernel whose one argument is the device address of all that it reads.
using StepKernel = void (*)(const void* arguments);

// The shape of the product tiles in a launch. Phases without tiles join any.
enum class PhaseTile { kAny, kNarrow, kMiddle };

struct PhaseKernel {
  StepKernel kernel;  // its argument is a PhaseList
  size_t shared_bytes;
};

// For phases of a type of activations; `has_blocks`: there may be weights of q8.
PhaseKernel phase_kernel(DType type, PhaseTile tile, bool has_blocks);

}  // namespace at_moe::cuda
