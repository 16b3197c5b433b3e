#include "cpu/backend.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "backend/registry.h"
#include "core/status.h"
#include "cpu/kernels.h"
#include "cpu/kv.h"
#include "cpu/processor.h"
#include "cpu/weight.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define AT_MOE_HAS_MMAP 1
#endif

namespace at_moe {

namespace {

constexpr size_t kMapFrom = size_t{1} << 20;
constexpr int64_t kCopyGrain = int64_t{1} << 20;

[[noreturn]] void fail_out_of_memory(size_t bytes) {
  const int64_t free = free_memory();
  fail(Code::kOutOfMemory, "cannot allocate ", bytes, " bytes of memory",
       free < 0 ? std::string() : concat(", ", free, " bytes are free"));
}

// AT_MOE_CPU_Q8=f32: products with weights of q8 read activations as they are, not quantised; slower, and the reference.
bool wants_integers() {
  const char* wanted = std::getenv("AT_MOE_CPU_Q8");
  return !wanted || std::string(wanted) != "f32";
}

}  // namespace

Buffer allocate_aligned(size_t bytes) {
  if (bytes == 0) bytes = 1;
#ifdef AT_MOE_HAS_MMAP
  if (bytes >= kMapFrom) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) fail_out_of_memory(bytes);
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return Buffer(data, bytes, [](void* memory, size_t size) { munmap(memory, size); });
  }
#endif
  void* data = ::operator new (bytes, std::align_val_t{64}, std::nothrow);
  if (!data) fail_out_of_memory(bytes);
  std::memset(data, 0, bytes);
  return Buffer(data, bytes, [](void* memory, size_t) { ::operator delete (memory, std::align_val_t{64}); });
}

CpuBackend::CpuBackend(int threads, const std::vector<int>& affinity)
    : pool_(threads, affinity),
      kernels_(cpu::best_kernels().kernels),
      integers_(wants_integers() ? &cpu::best_kernels().integers : nullptr),
      pairs_(cpu::best_kernels().pairs),
      worker_scratch_(pool_.workers()),
      read_scratch_(pool_.workers()) {}

double CpuBackend::multiply_rate() const { return kernels_.multiply_rate * pool_.workers(); }

// It was started by an engine's thread, which may be bound to a processor of its own.
void CpuBackend::enter_thread() { free_this_thread(); }

void* CpuBackend::grow(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = allocate_aligned(bytes + bytes / 4);
  }
  return buffer.as<void>();
}

void CpuBackend::copy(void* to, const void* from, size_t bytes) {
  pool_.run_ranges(static_cast<int64_t>(bytes), kCopyGrain, [&](int64_t begin, int64_t end, int) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                static_cast<size_t>(end - begin));
  });
}

void CpuBackend::zero(void* device, size_t bytes) {
  pool_.run_ranges(static_cast<int64_t>(bytes), kCopyGrain, [&](int64_t begin, int64_t end, int) {
    std::memset(static_cast<char*>(device) + begin, 0, static_cast<size_t>(end - begin));
  });
}

std::unique_ptr<Weight> CpuBackend::create_weight(int64_t rows, int64_t cols, Storage storage) {
  return std::make_unique<CpuWeight>(rows, cols, storage, allocate(weight_bytes(rows, cols, storage)));
}

std::unique_ptr<Weight> CpuBackend::adopt_weight(int64_t rows, int64_t cols, Storage storage, Buffer packed) {
  const size_t wanted = CpuWeight::bytes(rows, cols, storage);
  if (packed.bytes() < wanted) fail(Code::kBadFile, "a packed weight of ", packed.bytes(), " bytes, not ", wanted);
  require(reinterpret_cast<uintptr_t>(packed.as<char>()) % 64 == 0, "a packed weight is not aligned");
  return std::make_unique<CpuWeight>(rows, cols, storage, std::move(packed));
}

std::unique_ptr<Weight> CpuBackend::create_router_weight(int64_t rows, int64_t cols) {
  return create_weight(rows, cols, Storage::f32);
}

size_t CpuBackend::weight_bytes(int64_t rows, int64_t cols, Storage storage) const {
  return CpuWeight::bytes(rows, cols, storage);
}

size_t CpuBackend::router_weight_bytes(int64_t rows, int64_t cols) const {
  return weight_bytes(rows, cols, Storage::f32);
}

std::unique_ptr<KvPool> CpuBackend::create_kv(const KvPool::Shape& shape) {
  return std::make_unique<CpuKvPool>(shape, allocate(CpuKvPool::bytes(shape)));
}

size_t CpuBackend::kv_bytes(const KvPool::Shape& shape) const { return CpuKvPool::bytes(shape); }

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options.threads, options.affinity);
}

ThreadCensus count_cpu_threads() {
  const Pool::Census census = Pool::census();
  return {census.awake, usable_processors(), census.made_room, census.woken, census.taken};
}

const char* cpu_packed_layout() { return kPanelLayout; }

std::vector<DeviceDescription> describe_cpu() {
  DeviceDescription cpu;
  cpu.name = "cpu";
  cpu.memory_bytes = usable_memory();
  try {
    const int cores = usable_cores();
    cpu.description =
        concat(processor_name(), ", ", cores, cores == 1 ? " core, " : " cores, ", cpu::best_kernels().name);
    cpu.available = true;
  } catch (const Error& error) {
    cpu.description = processor_name();
    cpu.reason = error.what();
  }
  return {cpu};
}

}  // namespace at_moe
