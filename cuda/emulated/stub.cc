// Stands in for the emulated device in a build without it: it is test equipment.
#include "backend/registry.h"
#include "core/status.h"

namespace at_moe {

std::unique_ptr<Backend> create_emulated_backend(const BackendOptions&) {
  fail(Code::kDeviceUnavailable, "this build of at-moe has no emulated device (npm run build:emulated makes one)");
}

}  // namespace at_moe
