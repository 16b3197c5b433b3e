#include "backend/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <span>
#include <vector>

#include "core/tensor_source.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"

namespace at_moe {

namespace {

constexpr int kRepeats = 5;
constexpr int64_t kCopyGrain = int64_t{1} << 20;
constexpr int64_t kRounds = 4'000'000;
constexpr int64_t kRows = 512, kInputs = 2048, kOutputs = 4096;  // of the large product

// Work done by one call of `work`, per second, at best.
template <typename Work>
double best_rate(Work&& work) {
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const double done = work();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, done / elapsed.count());
  }
  return best;
}

}  // namespace

double measure_read_rate(int threads, size_t bytes) {
  Pool pool(threads);
  const cpu::Kernels& kernels = cpu::best_kernels().kernels;
  const Buffer memory = allocate_aligned(bytes);
  std::memset(memory.as<char>(), 0, bytes);  // its own pages, not the shared page of zeros
  const int64_t part = static_cast<int64_t>(bytes) / pool.workers() / 64 * 64;
  std::atomic<float> keep{0};
  pool.begin_step();
  return best_rate([&] {
    pool.run(pool.workers(), [&](int64_t task, int) { keep = kernels.read(memory.as<char>() + task * part, part); });
    return static_cast<double>(part) * pool.workers();
  });
}

double measure_product_rate(int threads, Storage storage) {
  CpuBackend backend(threads);
  const std::unique_ptr<Weight> weight = backend.create_weight(kOutputs, kInputs, storage);
  const std::vector<float> ones(static_cast<size_t>(kOutputs * kInputs), 1.0f);
  backend.pack(*weight, 0, kOutputs, ones.data(), DType::f32, nullptr);
  std::vector<float> x(static_cast<size_t>(kRows * kInputs), 1.0f), y(static_cast<size_t>(kRows * kOutputs));
  const LinearModule module{weight.get(), nullptr, matrix(y.data(), kRows, kOutputs)};
  LinearForward product;
  product.x = matrix(x.data(), kRows, kInputs);
  product.modules = std::span(&module, 1);
  backend.begin_step();
  return best_rate([&] {
    backend.forward(product);
    return static_cast<double>(kRows * kInputs * kOutputs);
  });
}

double measure_fma_rate(int threads) {
  Pool pool(threads);
  const cpu::Kernels& kernels = cpu::best_kernels().kernels;
  std::atomic<int64_t> products{0};
  pool.begin_step();
  return best_rate([&] {
    products = 0;
    pool.run(pool.workers(), [&](int64_t task, int) {
      float keep = static_cast<float>(task);
      products += kernels.spin_fma(kRounds, &keep);
    });
    return static_cast<double>(products);
  });
}

double measure_copy_rate(int threads, const std::vector<std::string>& files) {
  if (files.empty()) return 0;
  Pool pool(threads);
  pool.begin_step();
  int64_t bytes = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& path : files) {
    const MappedFile file(path);
    const auto size = static_cast<int64_t>(file.size());
    const Buffer fresh = allocate_aligned(file.size());
    pool.run_ranges(size, kCopyGrain, [&](int64_t begin, int64_t end, int) {
      std::memcpy(fresh.as<char>() + begin, file.data() + begin, static_cast<size_t>(end - begin));
    });
    bytes += size;
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes) / elapsed.count();
}

}  // namespace at_moe
