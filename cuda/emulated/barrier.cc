#include "cuda/emulated/barrier.h"

#include "cuda/emulated/simt.h"

namespace at_moe::cuda {

namespace {

// The 64 bits: arrivals that are pending (20), those of a phase (20), bytes that are announced and not copied (22, with a
// sign), parity of the running phase (1), and 0, which memory that nobody has written does not have.
constexpr uint32_t kMostArrivals = (1u << 20) - 1;
constexpr int64_t kMostBytes = (1 << 20) - 1;

struct Phase {
  uint32_t pending, count;
  int64_t bytes;
  uint32_t parity;
};

Phase read(const uint64_t* barrier) {
  const uint64_t word = *barrier;
  if (word >> 63) simt::fault("a barrier that was not initialised");
  return {static_cast<uint32_t>(word & kMostArrivals), static_cast<uint32_t>(word >> 20 & kMostArrivals),
          static_cast<int64_t>(word << 2) >> 42, static_cast<uint32_t>(word >> 62)};
}

void write(uint64_t* barrier, Phase phase) {
  if (phase.bytes > kMostBytes || phase.bytes < -kMostBytes) simt::fault("a barrier with too many bytes on their way");
  if (phase.pending == 0 && phase.bytes == 0) {
    phase.pending = phase.count;
    phase.parity ^= 1;
  }
  *barrier = phase.pending | uint64_t{phase.count} << 20 | (static_cast<uint64_t>(phase.bytes) & 0x3FFFFF) << 40 |
             uint64_t{phase.parity} << 62;
}

void arrive(uint64_t* barrier, uint32_t bytes) {
  Phase phase = read(barrier);
  if (phase.pending == 0) simt::fault("more arrivals at a barrier than it was made for");
  --phase.pending;
  phase.bytes += bytes;
  write(barrier, phase);
}

}  // namespace

void barrier_init(uint64_t* barrier, uint32_t count) {
  if (count == 0 || count > kMostArrivals) simt::fault("a barrier of so many arrivals");
  write(barrier, {count, count, 0, 0});
}

void barrier_arrive(uint64_t* barrier) { arrive(barrier, 0); }
void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) { arrive(barrier, bytes); }

void barrier_complete(uint64_t* barrier, uint32_t bytes) {
  Phase phase = read(barrier);
  phase.bytes -= bytes;
  write(barrier, phase);
}

void barrier_wait(const uint64_t* barrier, uint32_t parity) {
  const auto has_ended = [](const void* object, uint32_t waited) {
    return read(static_cast<const uint64_t*>(object)).parity != waited;
  };
  simt::wait_until({"a phase of a barrier", has_ended, barrier, parity});
}

}  // namespace at_moe::cuda
