// Device memory of the emulated device is host memory, filled with NaN, so that nothing can rely on what it holds.
#include <cstdlib>
#include <cstring>

#include "backend/registry.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/runtime.h"

namespace at_moe {

namespace cuda {

namespace {

constexpr size_t kAlign = 256;
constexpr int kPoison = 0xFF;

struct RecordedGraph : Graph {
  Recording recording;
};

class EmulatedRuntime : public Runtime {
 public:
  std::string name() const override { return "emulated"; }
  const DeviceLimits& limits() const override { return limits_; }
  std::unique_ptr<Runtime> beside() const override { return std::make_unique<EmulatedRuntime>(); }
  Stream stream() const override { return recording_; }
  int resident_blocks(const void*, int, size_t) const override { return 2 * limits_.multiprocessors; }
  std::unique_ptr<Graph> capture(const std::function<void()>& enqueue) override {
    auto graph = std::make_unique<RecordedGraph>();
    recording_ = &graph->recording;
    enqueue();
    recording_ = nullptr;
    return graph;
  }
  void replay(const Graph& graph) override {
    for (const auto& launch : static_cast<const RecordedGraph&>(graph).recording.launches) launch();
  }

  Buffer allocate(size_t bytes) override {
    // As malloc gives it, so that AddressSanitizer knows where it ends.
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlign, bytes ? bytes : 1) != 0)
      fail(Code::kOutOfMemory, "cannot allocate ", bytes, " bytes on the emulated device");
    std::memset(memory, kPoison, bytes);
    return Buffer(memory, bytes, [](void* data, size_t) { std::free(data); });
  }
  Buffer allocate_host(size_t bytes) override { return allocate(bytes); }
  void upload(void* device, const void* host, size_t bytes) override { copy(device, host, bytes); }
  void upload_async(void* device, const void* host, size_t bytes) override { copy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { copy(host, device, bytes); }
  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes) std::memmove(to, from, bytes);
  }
  void zero(void* device, size_t bytes) override {
    if (bytes) std::memset(device, 0, bytes);
  }
  void synchronize() override {}

 private:
  Recording* recording_ = nullptr;
  DeviceLimits limits_{4, size_t{227} << 10, 90};
};

}  // namespace

}  // namespace cuda

std::unique_ptr<Backend> create_emulated_backend(const BackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(std::make_unique<cuda::EmulatedRuntime>(), options.activation);
}

}  // namespace at_moe
