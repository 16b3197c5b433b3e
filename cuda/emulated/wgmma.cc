#include "cuda/emulated/wgmma.h"

#include <bitset>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <list>
#include <vector>

#include "cuda/emulated/shared.h"

namespace at_moe::cuda {

namespace {

constexpr int kThreads = 128, kRows = 64, kDepth = 16;

// Accumulators while operations on them are under way.
struct Accumulators {
  float* d[kThreads];
  int n, operations;
  std::vector<float> sums;  // [64, n]
};

struct Operation {
  WgmmaIssue issue;
  std::list<Accumulators>::iterator accumulators;
};
using Group = std::vector<Operation>;

struct Warpgroup {
  uint64_t block = 0;
  std::bitset<kThreads> fenced;
  std::list<Accumulators> busy;
  Group open;
  std::deque<Group> groups;
};

Warpgroup& own() {
  static thread_local std::deque<Warpgroup> all;
  const auto index = static_cast<size_t>(simt::thread().linear / kThreads);
  while (all.size() <= index) all.emplace_back();
  if (all[index].block != simt::block().number) {
    all[index] = Warpgroup();
    all[index].block = simt::block().number;
  }
  return all[index];
}

template <typename F>
void visit(const Accumulators& accumulators, F f) {
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < accumulators.n / 2; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, col = i / 4 * 8 + t % 4 * 2 + i % 2;
      f(accumulators.d[t][i], static_cast<size_t>(row * accumulators.n + col));
    }
  }
}

// The fields of a matrix descriptor, all in bytes.
struct Descriptor {
  uint32_t start, leading, stride;
  bool transposed;

  Descriptor(uint64_t bits, bool transposed_)
      : start(field(bits, 0)), leading(field(bits, 16)), stride(field(bits, 32)), transposed(transposed_) {
    constexpr uint64_t kSwizzle128 = 1;
    if (bits >> 62 != kSwizzle128) simt::fault("a matrix descriptor without the 128-byte swizzle");
    if ((bits >> 49 & 7) != 0) simt::fault("a matrix descriptor with a base offset");
  }

  // Element k of row (or column) `index`, in units of 8 values of 16 bytes:
  //   along k        (8, i) by (2): 128, stride by 16       8 rows of 128 bytes, then the next 8 rows
  //   along m or n   (8, i) by (8, 2): 16, leading by 128, stride     lines of 64 values for each k
  float at(int index, int k, float (*widen)(uint16_t)) const {
    const auto i = static_cast<uint32_t>(index), j = static_cast<uint32_t>(k);
    const uint32_t offset = transposed ? i % 64 * 2 + i / 64 * leading + j % 8 * 128 + j / 8 * stride
                                       : i % 8 * 128 + i / 8 * stride + j * 2;
    uint16_t bits;
    std::memcpy(&bits, shared_pointer(swizzle128(start + offset)), sizeof(bits));
    return widen(bits);
  }

 private:
  static uint32_t field(uint64_t bits, int at) { return static_cast<uint32_t>(bits >> at & 0x3FFF) << 4; }
};

void execute(const Operation& operation) {
  const WgmmaIssue& issue = operation.issue;
  const Descriptor a(issue.a, issue.transpose_a), b(issue.b, issue.transpose_b);
  std::vector<float> right(static_cast<size_t>(kDepth * issue.n));
  for (int k = 0; k < kDepth; ++k) {
    for (int n = 0; n < issue.n; ++n) right[static_cast<size_t>(k * issue.n + n)] = b.at(n, k, issue.widen);
  }
  for (int m = 0; m < kRows; ++m) {
    float* sums = operation.accumulators->sums.data() + m * issue.n;
    for (int k = 0; k < kDepth; ++k) {
      const float left = a.at(m, k, issue.widen);
      const float* line = right.data() + k * issue.n;
      for (int n = 0; n < issue.n; ++n) sums[n] += left * line[n];
    }
  }
}

void finish(Warpgroup& warpgroup, const Operation& operation) {
  Accumulators& accumulators = *operation.accumulators;
  execute(operation);
  if (--accumulators.operations > 0) return;
  visit(accumulators, [&](float& value, size_t at) { value = accumulators.sums[at]; });
  warpgroup.busy.erase(operation.accumulators);
}

struct Arrival {
  float* d;
  WgmmaIssue issue;
};

void issue(void** lanes) {
  const auto of = [lanes](int t) { return static_cast<Arrival*>(lanes[t]); };
  Warpgroup& warpgroup = own();
  const WgmmaIssue& first = of(0)->issue;
  for (int t = 0; t < kThreads; ++t) {
    const WgmmaIssue& other = of(t)->issue;
    if (other.a != first.a || other.b != first.b || other.n != first.n) simt::fault("wgmmas of a group that differ");
  }
  auto accumulators = warpgroup.busy.begin();
  while (accumulators != warpgroup.busy.end() && accumulators->d[0] != of(0)->d) ++accumulators;
  if (accumulators == warpgroup.busy.end()) {
    if (!warpgroup.fenced.all()) simt::fault("a wgmma without a fence after its accumulators were free");
    accumulators = warpgroup.busy.emplace(accumulators);
    accumulators->n = first.n;
    accumulators->operations = 0;
    accumulators->sums.resize(static_cast<size_t>(kRows * first.n));
    for (int t = 0; t < kThreads; ++t) accumulators->d[t] = of(t)->d;
    visit(*accumulators, [&](float& value, size_t at) {
      accumulators->sums[at] = value;
      value = std::numeric_limits<float>::quiet_NaN();
    });
  }
  ++accumulators->operations;
  warpgroup.open.push_back({first, accumulators});
}

void commit(void**) {
  Warpgroup& warpgroup = own();
  warpgroup.groups.push_back(std::move(warpgroup.open));
  warpgroup.open.clear();
}

void wait(void** lanes) {
  Warpgroup& warpgroup = own();
  const auto pending = static_cast<size_t>(*static_cast<int*>(lanes[0]));
  while (warpgroup.groups.size() > pending) {
    for (const Operation& operation : warpgroup.groups.front()) finish(warpgroup, operation);
    warpgroup.groups.pop_front();
  }
  warpgroup.fenced.reset();
}

}  // namespace

void issue_wgmma(float* d, const WgmmaIssue& operation) {
  Arrival mine{d, operation};
  simt::warpgroup_collective(&mine, issue);
}

void wgmma_fence() { own().fenced.set(static_cast<size_t>(simt::thread().linear % kThreads)); }
void wgmma_commit() { simt::warpgroup_collective(nullptr, commit); }
void wait_wgmma(int pending) { simt::warpgroup_collective(&pending, wait); }

}  // namespace at_moe::cuda
