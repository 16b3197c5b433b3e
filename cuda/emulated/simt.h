// CUDA's execution model on one processor: a fiber per thread, so that barriers and warp operations are switches, and the
// same kernel source runs under g++. Test equipment: it finds missing barriers and waits (by running the threads in other
// orders and by landing asynchronous copies late), deadlocks, and overruns under AddressSanitizer.
//
// A block stays on one OS thread, so __shared__ is `static thread_local`. Blocks run one after another; with `resident` > 1
// that many are in flight on OS threads of their own, of which one runs at a time, chosen at random at barriers, atomics
// and spins: the same seed interleaves them the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace at_moe::cuda::simt {

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;  // of ready threads within a block, and of blocks
  uint32_t seed = 1;
  int resident = 1;
};

// From AT_MOE_EMULATED_ORDER (forward, reverse, random), AT_MOE_EMULATED_SEED and AT_MOE_EMULATED_RESIDENT.
Settings settings_of_environment();
Settings& settings();

struct Thread {
  dim3 index;
  int linear = 0;
};
struct Block {
  dim3 index, shape, grid;
  unsigned char* shared = nullptr;  // dynamic shared memory, filled with NaN at the start of each block
  size_t shared_bytes = 0;
  uint64_t number = 0;  // of the blocks that this OS thread has run
};
const Thread& thread();
const Block& block();

// Runs the kernel; returns when it is done. A deadlock is reported on stderr, thread by thread, and aborts the process.
void run(dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& kernel);

// All threads that have not returned arrive; arriving from different places of the source is reported as a deadlock is.
struct Place {
  const char* file = "";
  unsigned line = 0;
};
void barrier(Place place);
// All lanes of `mask` arrive with a pointer; the last one runs `act` on the 32 pointers (null for lanes outside of it).
void warp_collective(uint32_t mask, void* mine, void (*act)(void** lanes));
// The same for the 128 threads of the caller's warpgroup.
void warpgroup_collective(void* mine, void (*act)(void** lanes));
// Until the condition holds, which other threads or deferred work bring about; `name` is for the report of a deadlock.
struct Condition {
  const char* name = "";
  bool (*holds)(const void* object, uint32_t argument) = nullptr;
  const void* object = nullptr;
  uint32_t argument = 0;
};
void wait_until(const Condition& condition);
// Work of the block beside its threads: done when no thread can go on without it, by the order of the schedule.
void defer(std::function<void()> work);
// Reports a misuse as a deadlock is reported.
[[noreturn]] void fault(const char* what);
// Other threads, and other resident blocks, may run now. Where there are none, or a few million times in a row, a deadlock.
void spin();
// A point where another resident block may come in between.
void interleave();

// Copies to shared memory that land when their group is waited for; until then the destination holds NaN.
void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_copies(int pending);

}  // namespace at_moe::cuda::simt
