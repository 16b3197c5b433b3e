// What a kernel may use, under nvcc for a GPU or under g++ for the emulated device. The two device.h offer the same names:
//   thread and block indices, __shared__, barriers, shuffles, ballots, integer atomics as in CUDA;
//   shared_memory<T>()           the launch's dynamic shared memory, 16-byte aligned
//   launch(stream, {grid, block, shared bytes}, kernel, arguments…)
//   numbers (cuda/number.h), and one function per PTX instruction (see the emulated header for what each does).
#pragma once

#ifdef AT_MOE_EMULATED
#include "cuda/emulated/device.h"
#elif defined(__CUDACC__)
#include "cuda/nvidia/device.h"
#else
#include "cuda/nvidia/host.h"  // host sources of a build for GPUs
#endif
