// Ops without kernels yet.
#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

void CudaBackend::forward(const LinearForward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::backward(const LinearBackward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::forward(const RouterLogits&) { fail(Code::kUnsupported, "not written yet"); }

}  // namespace at_moe::cuda
