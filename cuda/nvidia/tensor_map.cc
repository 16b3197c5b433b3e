#include "cuda/tensor_map.h"

#include <cuda.h>

#include <cstring>

#include "core/status.h"
#include "cuda/nvidia/host.h"

namespace at_moe::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime: the addon must load where there is no driver to link.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  constexpr unsigned kVersion = 12000;  // the first with tensor maps
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kVersion, cudaEnableDefault, &result),
        "the driver's tensor maps");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
        "the driver's tensor maps");
#endif
  if (result != cudaDriverEntryPointSuccess || !found)
    fail(Code::kDeviceUnavailable, "the NVIDIA driver has no tensor maps");
  return reinterpret_cast<Encode>(found);
}

}  // namespace

TensorMap make_tensor_map(const Matrix& matrix, int box_rows) {
  static const Encode encode = find_encode();
  require(matrix.dtype == DType::bf16 || matrix.dtype == DType::f16, "tensor map: not a matrix of 16-bit values");
  const cuuint64_t dims[] = {static_cast<cuuint64_t>(matrix.cols), static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(matrix.stride) * size_of(matrix.dtype)};
  const cuuint32_t box[] = {kBoxCols, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  CUtensorMap made;
  const CUresult result =
      encode(&made, matrix.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             matrix.data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "tensor map of ", matrix.rows, " x ", matrix.cols, ": driver error ",
          static_cast<int>(result));
  static_assert(sizeof(made) == sizeof(TensorMap));
  TensorMap map;
  std::memcpy(&map, &made, sizeof(map));
  return map;
}

}  // namespace at_moe::cuda
