#include "backend/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/kernels.h"

namespace at_moe {

namespace {

constexpr int kRepeats = 5;
constexpr int64_t kRounds = 4'000'000;

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

}  // namespace at_moe
