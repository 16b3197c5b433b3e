#include "cuda/emulated/simt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cuda/emulated/fiber.h"
#include "cuda/emulated/turns.h"

namespace at_moe::cuda::simt {

namespace {

constexpr int kWarp = 32, kWarpgroup = 128;
constexpr int kSpinLimit = 4'000'000;
constexpr int kPoison = 0xFF;

enum class State : uint8_t { kReady, kAtBarrier, kInWarp, kInWarpgroup, kWaiting, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Lane : Thread {
  Fiber fiber;
  State state = State::kReady;
  Place place;          // of the barrier it waits at
  Condition condition;  // that it waits for
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Warp {
  void* lanes[kWarp] = {};
  uint32_t arrived = 0;
};

struct Warpgroup {
  void* lanes[kWarpgroup] = {};
  int arrived = 0;
};

// The blocks that one OS thread runs, one after another.
class Runner {
 public:
  Block block;
  Lane* current = nullptr;
  Turns* turns = nullptr;
  int me = 0;

  void prepare(dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& kernel) {
    count_ = static_cast<int>(shape.x * shape.y * shape.z);
    block.grid = grid;
    block.shape = shape;
    kernel_ = &kernel;
    shared_.reset(new (std::align_val_t{128}) unsigned char[std::max<size_t>(shared_bytes, 1)]);
    block.shared_bytes = shared_bytes;
    block.shared = shared_.get();
    while (static_cast<int>(lanes_.size()) < count_) lanes_.push_back(std::make_unique<Lane>());
    warps_.assign(static_cast<size_t>((count_ + kWarp - 1) / kWarp), {});
    warpgroups_.assign(static_cast<size_t>((count_ + kWarpgroup - 1) / kWarpgroup), {});
    for (int i = 0; i < count_; ++i) {
      Lane& lane = *lanes_[static_cast<size_t>(i)];
      const unsigned n = static_cast<unsigned>(i);
      lane.linear = i;
      lane.index = dim3(n % shape.x, n / shape.x % shape.y, n / shape.x / shape.y);
    }
    random_ = Random(settings().seed + static_cast<uint32_t>(me));
  }

  void run_block(dim3 index) {
    block.index = index;
    ++block.number;
    std::memset(block.shared, kPoison, block.shared_bytes);
    for (Warp& warp : warps_) warp.arrived = 0;
    for (Warpgroup& warpgroup : warpgroups_) warpgroup.arrived = 0;
    for (int i = 0; i < count_; ++i) {
      Lane& lane = *lanes_[static_cast<size_t>(i)];
      lane.state = State::kReady;
      lane.open.clear();
      lane.groups.clear();
      lane.fiber.start(entry);
    }
    alive_ = count_;
    at_barrier_ = 0;
    current = lanes_[settings().order == Order::kReverse ? static_cast<size_t>(count_ - 1) : 0].get();
    Fiber::change(home_, current->fiber);
  }

  void barrier(Place place) {
    current->place = place;
    current->state = State::kAtBarrier;
    if (++at_barrier_ == alive_) return release_barrier();
    wait(State::kAtBarrier);
  }

  void collective(uint32_t mask, void* mine, void (*act)(void** lanes)) {
    Warp& warp = warps_[static_cast<size_t>(current->linear / kWarp)];
    const int lane = current->linear % kWarp;
    warp.lanes[lane] = mine;
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask) != mask) return wait(State::kInWarp);
    void* lanes[kWarp];
    for (int i = 0; i < kWarp; ++i) lanes[i] = (mask >> i & 1) ? warp.lanes[i] : nullptr;
    act(lanes);
    warp.arrived &= ~mask;
    const int first = current->linear - lane;
    for (int i = 0; i < kWarp && first + i < count_; ++i) {
      Lane& other = *lanes_[static_cast<size_t>(first + i)];
      if ((mask >> i & 1) && other.state == State::kInWarp) other.state = State::kReady;
    }
  }

  void warpgroup_collective(void* mine, void (*act)(void** lanes)) {
    const int first = current->linear / kWarpgroup * kWarpgroup;
    if (first + kWarpgroup > count_) report("a warpgroup operation outside of a whole warpgroup");
    Warpgroup& warpgroup = warpgroups_[static_cast<size_t>(first / kWarpgroup)];
    warpgroup.lanes[current->linear - first] = mine;
    if (++warpgroup.arrived < kWarpgroup) return wait(State::kInWarpgroup);
    act(warpgroup.lanes);
    warpgroup.arrived = 0;
    for (int i = first; i < first + kWarpgroup; ++i) {
      Lane& other = *lanes_[static_cast<size_t>(i)];
      if (other.state == State::kInWarpgroup) other.state = State::kReady;
    }
  }

  void wait_until(const Condition& condition) {
    if (condition.holds(condition.object, condition.argument)) return;
    current->condition = condition;
    wait(State::kWaiting);
  }

  void defer(std::function<void()> work) { deferred_.push_back(std::move(work)); }

  void spin() {
    if (++spins_ > kSpinLimit) report("a thread spins without end");
    if (Lane* next = ready_after(current->linear, current)) go(*next);
    else if (!deferred_.empty()) do_deferred();
    else if (!turns) report("a thread spins without end");  // nobody is left who could end it
    if (turns) turns->pass(me, 1);
  }
  void progress() { spins_ = 0; }

  [[noreturn]] void report(const char* what) const {
    std::fprintf(stderr, "emulated device: %s in block (%u, %u, %u) of (%u, %u, %u)\n", what, block.index.x,
                 block.index.y, block.index.z, block.grid.x, block.grid.y, block.grid.z);
    for (int i = 0; i < count_; ++i) {
      const Lane& lane = *lanes_[static_cast<size_t>(i)];
      if (lane.state == State::kAtBarrier)
        std::fprintf(stderr, "  thread %d waits at the barrier of %s:%u\n", i, lane.place.file, lane.place.line);
      if (lane.state == State::kInWarp) std::fprintf(stderr, "  thread %d waits in a warp operation\n", i);
      if (lane.state == State::kInWarpgroup) std::fprintf(stderr, "  thread %d waits in a warpgroup operation\n", i);
      if (lane.state == State::kWaiting) std::fprintf(stderr, "  thread %d waits for %s\n", i, lane.condition.name);
    }
    std::abort();
  }

 private:
  static void entry();

  void release_barrier() {
    if (turns) turns->pass(me, 4);
    const Lane* first = nullptr;
    for (int i = 0; i < count_; ++i) {
      Lane& lane = *lanes_[static_cast<size_t>(i)];
      if (lane.state != State::kAtBarrier) continue;
      if (!first) first = &lane;
      if (lane.place.line != first->place.line || std::strcmp(lane.place.file, first->place.file) != 0)
        report("divergent barrier");
    }
    at_barrier_ = 0;
    for (int i = 0; i < count_; ++i) {
      Lane& lane = *lanes_[static_cast<size_t>(i)];
      if (lane.state == State::kAtBarrier) lane.state = State::kReady;
    }
  }

  void wait(State state) {
    progress();
    current->state = state;
    Lane* next = next_after(current->linear);
    if (!next) report("deadlock");
    if (next != current) go(*next);
  }

  void finish() {
    progress();
    current->state = State::kDone;
    if (--alive_ && at_barrier_ == alive_) release_barrier();
    Fiber& from = current->fiber;
    Lane* next = alive_ ? next_after(current->linear) : nullptr;
    if (alive_ && !next) report("deadlock");
    if (!alive_ && !deferred_.empty()) report("asynchronous work at the end");
    if (next) current = next;
    Fiber::change(from, next ? next->fiber : home_);
  }

  void go(Lane& next) {
    Fiber& from = current->fiber;
    current = &next;
    Fiber::change(from, next.fiber);
  }

  Lane* ready_after(int at, const Lane* but = nullptr) {
    const Order order = settings().order;
    const int start = order == Order::kRandom ? static_cast<int>(random_.below(static_cast<uint32_t>(count_))) : at;
    for (int step = 1; step <= count_; ++step) {
      const int i = order == Order::kReverse ? (start - step + count_) % count_ : (start + step) % count_;
      Lane& lane = *lanes_[static_cast<size_t>(i)];
      const Condition& condition = lane.condition;
      if (lane.state == State::kWaiting && condition.holds(condition.object, condition.argument))
        lane.state = State::kReady;
      if (lane.state == State::kReady && &lane != but) return &lane;
    }
    return nullptr;
  }

  Lane* next_after(int at) {
    Lane* next = ready_after(at);
    for (; !next && !deferred_.empty(); next = ready_after(at)) do_deferred();
    return next;
  }

  void do_deferred() {
    size_t at = 0;
    if (settings().order == Order::kReverse) at = deferred_.size() - 1;
    if (settings().order == Order::kRandom) at = random_.below(static_cast<uint32_t>(deferred_.size()));
    const std::function<void()> work = std::move(deferred_[at]);
    deferred_.erase(deferred_.begin() + static_cast<std::ptrdiff_t>(at));
    work();
  }

  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete[](memory, std::align_val_t{128}); }
  };

  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Warp> warps_;
  std::vector<Warpgroup> warpgroups_;
  std::vector<std::function<void()>> deferred_;
  std::unique_ptr<unsigned char[], Free> shared_;
  Fiber home_{Fiber::Caller{}};
  int count_ = 0, alive_ = 0, at_barrier_ = 0, spins_ = 0;
  Random random_{1};
};

thread_local Runner* runner = nullptr;

void Runner::entry() {
  fiber_arrived();
  (*runner->kernel_)();
  runner->finish();
}

dim3 block_index(int64_t linear, dim3 grid) {
  const auto n = static_cast<unsigned>(linear);
  return dim3(n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y);
}

std::vector<int64_t> block_order(int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (settings().order == Order::kRandom) {
    Random random(settings().seed);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
  }
  return order;
}

}  // namespace

Settings settings_of_environment() {
  Settings found;
  auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  const std::string order = text("AT_MOE_EMULATED_ORDER");
  if (order == "reverse") found.order = Order::kReverse;
  if (order == "random") found.order = Order::kRandom;
  if (const std::string seed = text("AT_MOE_EMULATED_SEED"); !seed.empty())
    found.seed = static_cast<uint32_t>(std::stoul(seed));
  if (const std::string resident = text("AT_MOE_EMULATED_RESIDENT"); !resident.empty())
    found.resident = std::stoi(resident);
  return found;
}

Settings& settings() {
  static Settings all = settings_of_environment();
  return all;
}

const Thread& thread() { return *runner->current; }
const Block& block() { return runner->block; }

void run(dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& kernel) {
  const int64_t count = int64_t{grid.x} * grid.y * grid.z;
  const std::vector<int64_t> order = block_order(count);
  const int resident = static_cast<int>(std::min<int64_t>(settings().resident, count));
  if (resident <= 1) {
    static thread_local Runner mine;
    runner = &mine;
    mine.prepare(grid, shape, shared_bytes, kernel);
    for (int64_t i : order) mine.run_block(block_index(i, grid));
    return;
  }
  Turns turns(resident, settings().seed);
  size_t next = 0;                                                   // touched by the holder of the turn only
  static thread_local std::vector<std::unique_ptr<Runner>> runners;  // their stacks are worth keeping
  while (static_cast<int>(runners.size()) < resident) runners.push_back(std::make_unique<Runner>());
  std::vector<std::thread> threads;
  for (int me = 0; me < resident; ++me) {
    threads.emplace_back([&, me, &mine = *runners[static_cast<size_t>(me)]] {
      mine.me = me;
      mine.turns = &turns;
      runner = &mine;
      mine.prepare(grid, shape, shared_bytes, kernel);
      turns.begin(me);
      while (next < order.size()) mine.run_block(block_index(order[next++], grid));
      turns.end(me);
    });
  }
  for (std::thread& each : threads) each.join();
}

void barrier(Place place) { runner->barrier(place); }
void warp_collective(uint32_t mask, void* mine, void (*act)(void** lanes)) { runner->collective(mask, mine, act); }
void warpgroup_collective(void* mine, void (*act)(void** lanes)) { runner->warpgroup_collective(mine, act); }
void wait_until(const Condition& condition) { runner->wait_until(condition); }
void defer(std::function<void()> work) { runner->defer(std::move(work)); }
void fault(const char* what) { runner->report(what); }
void spin() { runner->spin(); }
void interleave() {
  runner->progress();
  if (runner->turns) runner->turns->pass(runner->me, 4);
}

void copy_async(void* to, const void* from, int bytes) {
  constexpr int kPiece = 16;
  std::memset(to, kPoison, kPiece);
  runner->current->open.push_back({to, from, bytes});
}

void commit_copies() {
  Lane& lane = *runner->current;
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
}

void wait_copies(int pending) {
  constexpr int kPiece = 16;
  Lane& lane = *runner->current;
  while (static_cast<int>(lane.groups.size()) > pending) {
    for (const Copy& copy : lane.groups.front()) {
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, static_cast<size_t>(kPiece - copy.bytes));
    }
    lane.groups.erase(lane.groups.begin());
  }
}

}  // namespace at_moe::cuda::simt
