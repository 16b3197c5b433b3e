// Ops without kernels yet.
#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

void CudaBackend::backward(const AttentionBackward&) { fail(Code::kUnsupported, "not written yet"); }

}  // namespace at_moe::cuda
