// Ops without kernels yet.
#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

void CudaBackend::forward(const RmsNormForward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::backward(const RmsNormBackward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::forward(const SwigluForward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::backward(const SwigluBackward&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::forward(const Dropout&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::forward(const SumRows&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::forward(const SpreadRows&) { fail(Code::kUnsupported, "not written yet"); }
void CudaBackend::update(const AdamW&) { fail(Code::kUnsupported, "not written yet"); }
double CudaBackend::squared_norm(const SquaredNorm&) { fail(Code::kUnsupported, "not written yet"); }

}  // namespace at_moe::cuda
