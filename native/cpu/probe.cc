#include "backend/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
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
  backend.pack(*weight, 0, kOutputs, ones.data(), DType::f32);
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

FileCopy copy_files(int threads, const std::vector<std::string>& files) {
  Pool pool(threads);
  pool.begin_step();
  FileCopy copy;
  std::vector<Buffer> fresh;  // freed when the time is over
  const std::clock_t processor = std::clock();
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& path : files) {
    const MappedFile file(path);
    const auto size = static_cast<int64_t>(file.size());
    fresh.push_back(allocate_aligned(file.size()));
    char* to = fresh.back().as<char>();
    pool.run_ranges(size, kCopyGrain, [&](int64_t begin, int64_t end, int) {
      file.read(static_cast<size_t>(begin), static_cast<size_t>(end - begin), to + begin);
    });
    copy.bytes += static_cast<double>(size);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  copy.seconds = elapsed.count();
  copy.processor_seconds = static_cast<double>(std::clock() - processor) / CLOCKS_PER_SEC;
  return copy;
}

}  // namespace at_moe
