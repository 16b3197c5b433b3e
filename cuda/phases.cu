// All ops of a few rows between two attentions in one launch (cuda/phase.h). Blocks draw tickets over the items of all
// phases in order, until none is left; so any number of blocks does all of the work, and what a block waits for has been
// drawn by one that runs. A phase waits until those before it are done, but for products:
//   weights are copied before anything is waited for,
//   rows are waited for up to the phase that wrote them: the shrinks run beside the router,
//   and gates, late terms and the epilogue up to all phases before.
#include "cuda/phases.h"

#include "cuda/attention_runs.cuh"
#include "cuda/embedding.cuh"
#include "cuda/operand.cuh"
#include "cuda/phase_progress.cuh"
#include "cuda/product.cuh"
#include "cuda/rms_norm.cuh"
#include "cuda/rope.cuh"
#include "cuda/router.cuh"
#include "cuda/router_logits.cuh"
#include "cuda/segments.cuh"
#include "cuda/swiglu.cuh"
#include "cuda/upload.cuh"

namespace at_moe::cuda {

namespace {

// What a tile waits for (cuda/product.cuh).
struct PhaseWaits {
  PhaseProgress& progress;
  const ProductPhase& product;
  int phase;

  __device__ bool selects() const { return product.selects; }
  __device__ void operands() { progress.wait(product.operands_ready); }
  __device__ void late() { progress.wait(phase); }
  __device__ void finish() { progress.wait(phase); }
};

template <typename T, typename Shape, bool has_blocks>
__global__ void __launch_bounds__(kPhaseThreads, 4) run_phases(const void* arguments) {
  static_assert(Shape::kThreads == kPhaseThreads);
  const PhaseList list = *static_cast<const PhaseList*>(arguments);
  PhaseProgress progress(list);
  __shared__ int drawn;
  for (int phase = 0;;) {
    if (threadIdx.x == 0) drawn = static_cast<int>(atomicAdd(&list.counters[0], 1u));
    __syncthreads();
    const int ticket = drawn;
    if (ticket >= list.items) return;
    while (ticket >= list.phases[phase].first + list.phases[phase].items) ++phase;
    const PhaseRecord& record = list.phases[phase];
    const int item = ticket - record.first;
    const auto run = [&](const auto* work) {
      progress.wait(phase);
      work->run(item);
    };
    switch (record.kind) {
      case PhaseKind::kUpload: run(static_cast<const Upload*>(record.arguments)); break;
      case PhaseKind::kConvert: run(static_cast<const Convert<T>*>(record.arguments)); break;
      case PhaseKind::kGather: run(static_cast<const Gather*>(record.arguments)); break;
      case PhaseKind::kNormalize: run(static_cast<const Normalize<float, T>*>(record.arguments)); break;
      case PhaseKind::kNormalizeHeads: run(static_cast<const Normalize<float, float>*>(record.arguments)); break;
      case PhaseKind::kScore: run(static_cast<const Score<T>*>(record.arguments)); break;
      case PhaseKind::kProduct: {
        const ProductPhase& product = *static_cast<const ProductPhase*>(record.arguments);
        PhaseWaits waits{progress, product, phase};
        multiply_tile<T, Form::kNT, Shape, has_blocks>(product.table, item, waits);
        break;
      }
      case PhaseKind::kRoute: run(static_cast<const Route*>(record.arguments)); break;
      case PhaseKind::kSpread: run(static_cast<const Spread*>(record.arguments)); break;
      case PhaseKind::kRotate: run(static_cast<const Rotate<float, T>*>(record.arguments)); break;
      case PhaseKind::kGated: run(static_cast<const Gated<T>*>(record.arguments)); break;
      case PhaseKind::kCombine: run(static_cast<const CombineRuns<T>*>(record.arguments)); break;
    }
    progress.announce(phase);
  }
}

template <typename T, typename Shape>
PhaseKernel kernel_of(bool has_blocks) {
  constexpr size_t kBytes = ProductTile<T, Form::kNT, Shape>::kSharedBytes;
  static_assert(kBytes >= kPhaseSharedBytes);
  return {has_blocks ? run_phases<T, Shape, true> : run_phases<T, Shape, false>, kBytes};
}

}  // namespace

PhaseKernel phase_kernel(DType type, PhaseTile tile, bool has_blocks) {
  PhaseKernel found{};
  dispatch(type, [&](auto element) {
    using T = decltype(element);
    found = tile == PhaseTile::kMiddle ? kernel_of<T, Middle>(has_blocks) : kernel_of<T, Narrow>(has_blocks);
  });
  return found;
}

}  // namespace at_moe::cuda
