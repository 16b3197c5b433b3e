#include "core/status.h"
#include "cuda/backend.h"
namespace at_moe::cuda {
#define UNWRITTEN(T) fail(Code::kUnsupported, #T " is not written yet");
void CudaBackend::forward(const LinearForward&) { UNWRITTEN(LinearForward) }
void CudaBackend::backward(const LinearBackward&) { UNWRITTEN(LinearBackward) }
void CudaBackend::forward(const RouterLogits&) { UNWRITTEN(RouterLogits) }
void CudaBackend::forward(const RouterForward&) { UNWRITTEN(RouterForward) }
void CudaBackend::backward(const RouterBackward&) { UNWRITTEN(RouterBackward) }
void CudaBackend::forward(const AttentionForward&) { UNWRITTEN(AttentionForward) }
void CudaBackend::backward(const AttentionBackward&) { UNWRITTEN(AttentionBackward) }
void CudaBackend::forward(const RmsNormForward&) { UNWRITTEN(RmsNormForward) }
void CudaBackend::backward(const RmsNormBackward&) { UNWRITTEN(RmsNormBackward) }
void CudaBackend::forward(const RopeForward&) { UNWRITTEN(RopeForward) }
void CudaBackend::backward(const RopeBackward&) { UNWRITTEN(RopeBackward) }
void CudaBackend::forward(const SwigluForward&) { UNWRITTEN(SwigluForward) }
void CudaBackend::backward(const SwigluBackward&) { UNWRITTEN(SwigluBackward) }
void CudaBackend::forward(const Dropout&) { UNWRITTEN(Dropout) }
void CudaBackend::forward(const CrossEntropy&) { UNWRITTEN(CrossEntropy) }
void CudaBackend::forward(const SumRows&) { UNWRITTEN(SumRows) }
void CudaBackend::forward(const SpreadRows&) { UNWRITTEN(SpreadRows) }
void CudaBackend::sample(const Sampling&) { UNWRITTEN(Sampling) }
void CudaBackend::update(const AdamW&) { UNWRITTEN(AdamW) }
double CudaBackend::squared_norm(const SquaredNorm&) { UNWRITTEN(SquaredNorm) }
}
