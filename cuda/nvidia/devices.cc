// The GPUs of this machine, seen without making a context on any of them.
#include <cuda_runtime.h>

#include <cctype>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

#include "backend/registry.h"
#include "core/status.h"

namespace at_moe {

namespace {

constexpr int kLeastMajor = 8;
constexpr const char* kLeastDriver = CUDART_VERSION >= 13000 ? "580" : "525";

DeviceDescription unavailable(std::string reason) {
  DeviceDescription device;
  device.name = "cuda";
  device.description = "NVIDIA GPU";
  device.reason = std::move(reason);
  return device;
}

std::string cuda_version(int number) { return concat(number / 1000, ".", number % 1000 / 10); }

// "580.95.05" from the kernel's module where it says so; empty elsewhere.
std::string driver_release() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line, word;
  std::getline(file, line);
  for (std::istringstream words(line); words >> word;) {
    if (std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos) return word;
  }
  return "";
}

std::string driver_name(int version) {
  const std::string release = driver_release();
  return concat("driver ", release.empty() ? "" : release + " ", "for CUDA ", cuda_version(version));
}

std::string reason_of(cudaError_t error, int driver) {
  const std::string text = concat(" (", cudaGetErrorName(error), ": ", cudaGetErrorString(error), ")");
  if (driver == 0) return "this machine has no NVIDIA driver";
  if (error == cudaErrorInsufficientDriver || driver / 1000 < CUDART_VERSION / 1000) {
    return concat("the NVIDIA driver is too old: this build of at-moe needs ", kLeastDriver, " or newer, for CUDA ",
                  cuda_version(CUDART_VERSION), "; found ", driver_name(driver));
  }
  if (error == cudaErrorNoDevice) return "no NVIDIA GPU is visible" + text;
  return "the NVIDIA driver does not answer" + text;
}

// Is there code for a GPU in "80-real,90a-real,80-virtual"? Machine code runs on its own major version from its minor
// one on, that of an architecture with a letter on no other; PTX runs on all later ones.
bool has_code(std::string_view built, int major, int minor) {
  const int wanted = 10 * major + minor;
  for (size_t at = 0; at < built.size();) {
    const std::string_view one = built.substr(at, built.find(',', at) - at);
    at += one.size() + 1;
    int number = 0;
    const char* end = std::from_chars(one.data(), one.data() + one.size(), number).ptr;
    const std::string_view kind(end, static_cast<size_t>(one.data() + one.size() - end));
    if (kind == "-virtual" ? number <= wanted
        : kind == "-real"  ? number / 10 == major && number <= wanted
                           : number == wanted) {
      return true;
    }
  }
  return false;
}

DeviceDescription describe(int index, int driver) {
  DeviceDescription device = unavailable("");
  device.name = concat("cuda:", index);
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    cudaGetLastError();
    device.reason = reason_of(error, driver);
    return device;
  }
  device.description = concat(properties.name, ", compute capability ", properties.major, ".", properties.minor, ", ",
                              driver_name(driver));
  device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  const std::string has = concat(properties.name, " has compute capability ", properties.major, ".", properties.minor);
  if (properties.major < kLeastMajor) {
    device.reason = concat(has, "; ", kLeastMajor, ".0 or newer is needed");
  } else if (!has_code(AT_MOE_CUDA_CODE, properties.major, properties.minor)) {
    device.reason = concat(has, "; this build of at-moe has kernels for ", AT_MOE_CUDA_CODE, " alone");
  }
  device.available = device.reason.empty();
  return device;
}

}  // namespace

std::vector<DeviceDescription> describe_cuda() {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) cudaGetLastError();
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    return {unavailable(reason_of(error, driver))};
  }
  if (count == 0) return {unavailable(reason_of(cudaErrorNoDevice, driver))};
  std::vector<DeviceDescription> devices;
  for (int i = 0; i < count; ++i) devices.push_back(describe(i, driver));
  return devices;
}

}  // namespace at_moe
