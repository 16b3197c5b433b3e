// Page-locked memory on its way to the device, and as much device memory: a ring that is filled again when the stream has
// come past it.
#pragma once

#include "core/status.h"
#include "cuda/runtime.h"

namespace at_moe::cuda {

class Staging {
 public:
  static constexpr size_t kBytes = size_t{8} << 20;
  struct Place {
    char *host, *device;  // 64-byte aligned, as tensor maps are
  };

  explicit Staging(Runtime& runtime)
      : runtime_(runtime), host_(runtime.allocate_host(kBytes)), device_(runtime.allocate(kBytes)) {}

  Place take(size_t bytes) {
    constexpr size_t kAlign = 64;
    require(bytes <= kBytes, "an op stages ", bytes, " bytes at once");
    if (used_ + bytes > kBytes) {
      runtime_.synchronize();  // copies and kernels may still read what lies there
      used_ = 0;
    }
    const Place place{host_.as<char>() + used_, device_.as<char>() + used_};
    used_ = (used_ + bytes + kAlign - 1) / kAlign * kAlign;
    return place;
  }

 private:
  Runtime& runtime_;
  Buffer host_, device_;
  size_t used_ = 0;
};

}  // namespace at_moe::cuda
