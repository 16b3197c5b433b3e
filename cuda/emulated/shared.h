// Addresses of the shared window, as instructions take them. Dynamic shared memory begins where a GPU may place it: at a
// multiple of 16 bytes and of no more.
#pragma once

#include <cstdint>

#include "cuda/emulated/simt.h"

namespace at_moe::cuda {

inline constexpr uint32_t kSharedBegin = 1024 + 16;

inline uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - simt::block().shared;
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(simt::block().shared_bytes))
    simt::fault("an address outside of dynamic shared memory");
  return kSharedBegin + static_cast<uint32_t>(offset);
}

inline unsigned char* shared_pointer(uint32_t address) {
  if (address < kSharedBegin || address - kSharedBegin >= simt::block().shared_bytes)
    simt::fault("an address outside of dynamic shared memory");
  return simt::block().shared + (address - kSharedBegin);
}

// The 128-byte swizzle: which 16 bytes of a line of 128 these are, permuted by the line's place among eight.
inline uint32_t swizzle128(uint32_t address) { return address ^ (address >> 3 & 0x70); }

}  // namespace at_moe::cuda
