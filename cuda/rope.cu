// Rotary embedding, half-split form (contract: backend/ops/elementwise.h). c, s = cos, sin of position * inv_freq_i.
//   forward   (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s)  for every head of q and k;
//             then k and v go to their slot: page page_table[sequence][position / 16], token position mod 16
//   backward  the rotation by -angle on dq and dk
// One block per row (cuda/rope.cuh).
#include "cuda/rope.cuh"

#include <type_traits>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/kv.h"

namespace at_moe::cuda {

namespace {

template <typename X, typename T>
__global__ void __launch_bounds__(kPhaseThreads) rotate_rows(Rotate<X, T> phase) {
  phase.run(blockIdx.x);
}

template <typename X, typename T>
Rotate<X, T> rotate_of(const Matrix& q_in, const Matrix& k_in, const Matrix& q, const Matrix& k, int64_t head_dim,
                       const double* inv_freq, float direction, const int32_t* position) {
  require(head_dim % 2 == 0, "rope: head_dim ", head_dim, " is odd");
  Rotate<X, T> phase{};
  phase.rotation = {static_cast<int>(head_dim / 2), inv_freq, direction};
  phase.q_in = rows_of<const X>(q_in);
  phase.k_in = rows_of<const X>(k_in);
  phase.q = rows_of<T>(q);
  phase.k = rows_of<T>(k);
  phase.rows = q.rows;
  phase.q_heads = static_cast<int>(q.cols / head_dim);
  phase.kv_heads = static_cast<int>(k.cols / head_dim);
  phase.position = position;
  return phase;
}

template <typename X, typename T>
LaunchShape shape_of(const Rotate<X, T>& phase) {
  return {dim3(static_cast<unsigned>(phase.items())), dim3(kPhaseThreads), phase.rotation.shared_bytes()};
}

}  // namespace

void CudaBackend::forward(const RopeForward& args) {
  dispatch(args.q_in.dtype, args.q.dtype, [&](auto input, auto output) {
    using X = decltype(input);
    using T = decltype(output);
    auto phase =
        rotate_of<X, T>(args.q_in, args.k_in, args.q, args.k, args.head_dim, args.inv_freq, 1, args.layout.position);
    phase.rows = args.layout.rows;
    if (args.kv) {
      const auto& pool = static_cast<const CudaKvPool&>(*args.kv);
      phase.v = rows_of<const T>(args.v);
      phase.sequence = args.layout.sequence;
      phase.page_table = args.layout.page_table;
      phase.page_stride = args.layout.page_stride;
      phase.keys = static_cast<T*>(pool.keys(args.layer));
      phase.values = static_cast<T*>(pool.values(args.layer));
    }
    if (std::is_same_v<X, float> && joins(phase.rows, args.q.dtype)) {
      return commands_.add(PhaseKind::kRotate, phase, args.q, args.k);
    }
    launch(stream(), shape_of(phase), rotate_rows<X, T>, phase);
  });
}

void CudaBackend::backward(const RopeBackward& args) {
  dispatch(args.dq.dtype, [&](auto element) {
    using T = decltype(element);
    const auto phase =
        rotate_of<T, T>(args.dq, args.dk, args.dq, args.dk, args.head_dim, args.inv_freq, -1, args.position);
    launch(stream(), shape_of(phase), rotate_rows<T, T>, phase);
  });
}

}  // namespace at_moe::cuda
