// Tiles of a weight of q8 in the stages of the product kernel (cuda/product.cuh), beside those of plain weights: int8 lines
// of kInputs inputs, 16 bytes apart, one for each of kOutputs outputs, then the scales of [kBlocks, kOutputs].
//   kNT, f16 and bf16   acc += s Σ_{k of a block} a q: the fragments of q are widened, which is exact, and a block's sum
//                       starts from zero and joins acc by one multiply-add
//   kNT, f32            acc += a (s q), one chain over k
//   kNN                 a tile is widened to s q, rounded to T, once, and then multiplied as a plain one
#pragma once

#include <cstdint>

#include "cuda/block_matrix.h"
#include "cuda/number.h"
#include "cuda/piece.h"

namespace at_moe::cuda {

// What a kernel reads of a BlockMatrix.
struct BlockOperand {
  const int8_t* values;
  const uint16_t* scales;
  int rows, stride, scale_stride;
};

template <typename T, int outputs, int inputs, int kThreads>
struct BlockTile {
  static constexpr int kOutputs = outputs, kInputs = inputs, kBlock = static_cast<int>(kQ8Block);
  static constexpr int kBlocks = kInputs < kBlock ? 1 : kInputs / kBlock;
  static constexpr int kPiece = 16, kLine = kInputs + kPiece, kLinePieces = kInputs / kPiece;
  static constexpr int kPieces = kOutputs * kLinePieces;
  static constexpr int kScalesAt = kOutputs * kLine, kScaleLinePieces = kOutputs / kPieceElements<f16>;
  static constexpr int kScalePieces = kBlocks * kScaleLinePieces;
  static constexpr int kBytes = kScalesAt + kBlocks * kOutputs * static_cast<int>(sizeof(f16));
  static_assert(kInputs % kPiece == 0 && kOutputs % kPieceElements<f16> == 0 && kScalePieces <= kThreads);

  __device__ static const int8_t* values(const T* tile, int output, int input) {
    return reinterpret_cast<const int8_t*>(tile) + output * kLine + input;
  }
  // Of a block and an output, and its neighbours behind it.
  __device__ static const f16* scales(const T* tile, int input, int output) {
    return reinterpret_cast<const f16*>(reinterpret_cast<const char*>(tile) + kScalesAt) + input / kBlock * kOutputs +
           output;
  }

  // Copies what begins at (output, input); what is outside of the weight becomes zero.
  __device__ static void copy(T* tile, const BlockOperand& weight, int output, int input) {
    char* to = reinterpret_cast<char*>(tile);
#pragma unroll
    for (int first = 0; first < kPieces; first += kThreads) {
      const int piece = first + static_cast<int>(threadIdx.x);
      if (kPieces % kThreads != 0 && piece >= kPieces) break;
      const int line = piece / kLinePieces, at = piece % kLinePieces * kPiece;
      const bool inside = output + line < weight.rows && input + at < weight.stride;
      const int64_t from = inside ? int64_t{output + line} * weight.stride + input + at : 0;
      cp_async16(to + line * kLine + at, weight.values + from, inside ? 16 : 0);
    }
    const int piece = static_cast<int>(threadIdx.x);
    if (piece >= kScalePieces) return;
    const int line = piece / kScaleLinePieces, at = piece % kScaleLinePieces * kPieceElements<f16>;
    const int block = input / kBlock + line;
    const bool inside = output + at < weight.scale_stride && block * kBlock < weight.stride;
    const int64_t from = inside ? int64_t{block} * weight.scale_stride + output + at : 0;
    cp_async16(to + kScalesAt + (line * kOutputs + at) * static_cast<int>(sizeof(f16)), weight.scales + from,
               inside ? 16 : 0);
  }

  // Two values of an output from an even input on.
  __device__ static float2 two(const T* tile, int output, int input) {
    const float scale = cuda::widen(*scales(tile, input, output));
    const int8_t* at = values(tile, output, input);
    return {scale * static_cast<float>(at[0]), scale * static_cast<float>(at[1])};
  }

  __device__ static uint32_t pair(const int8_t* at) {
    const uint16_t both = *reinterpret_cast<const uint16_t*>(at);
    const uint32_t low = narrow<T>(static_cast<float>(static_cast<int8_t>(both))).bits;
    return low | uint32_t{narrow<T>(static_cast<float>(static_cast<int8_t>(both >> 8))).bits} << 16;
  }

  // The block at `input` of 8 outputs as the b of two mma.m16n8k16.
  __device__ static void fragments(uint32_t (&b)[2][2], const T* tile, int output, int input) {
    const int lane = threadIdx.x % 32;
    const int8_t* at = values(tile, output + lane / 4, input + lane % 4 * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      b[half][0] = pair(at + 16 * half);
      b[half][1] = pair(at + 16 * half + 8);
    }
  }

  // acc of kRowBlocks x kColBlocks fragments += a q, by blocks. A's fragments of this lane start at (a_row, a_k).
  template <typename A, int kRowBlocks, int kColBlocks>
  __device__ static void multiply(float (&acc)[kRowBlocks][kColBlocks][4], const T* a_tile, const T* tile, int left,
                                  int a_row, int a_k, int col) {
#pragma unroll
    for (int k = 0; k < kInputs; k += kBlock) {
      if (k >= left) break;
      uint32_t b[kColBlocks][2][2];
      float2 scale[kColBlocks];
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) {
        fragments(b[j], tile, col + 8 * j, k);
        const f16* at = scales(tile, k, col + 8 * j + threadIdx.x % 4 * 2);
        scale[j] = {cuda::widen(at[0]), cuda::widen(at[1])};
      }
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        uint32_t a[2][4];
        A::fragment(a[0], a_tile, a_row + 16 * i, k + a_k);
        A::fragment(a[1], a_tile, a_row + 16 * i, k + 16 + a_k);
#pragma unroll
        for (int j = 0; j < kColBlocks; ++j) {
          float sum[4] = {};
          mma_m16n8k16<T>(sum, a[0], b[j][0]);
          mma_m16n8k16<T>(sum, a[1], b[j][1]);
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][j][e] = fmaf(e % 2 ? scale[j].y : scale[j].x, sum[e], acc[i][j][e]);
        }
      }
    }
  }

  // s q of all the tile, rounded to T, in lines of kWideLine.
  template <int kWideLine>
  __device__ static void widen(T* wide, const T* tile) {
    for (int piece = static_cast<int>(threadIdx.x); piece < kPieces; piece += kThreads) {
      const int line = piece / kLinePieces, first = piece % kLinePieces * kPiece;
      const float scale = cuda::widen(*scales(tile, first, line));
      const auto own = *reinterpret_cast<const Piece<int8_t, kPiece>*>(values(tile, line, first));
      constexpr int n = kPieceElements<T>;
#pragma unroll
      for (int at = 0; at < kPiece; at += n) {
        float both[n];
#pragma unroll
        for (int i = 0; i < n; ++i) both[i] = scale * static_cast<float>(own.at[at + i]);
        store_piece(both, wide + line * kWideLine + first, at, kPiece, true);
      }
    }
  }
};

}  // namespace at_moe::cuda
