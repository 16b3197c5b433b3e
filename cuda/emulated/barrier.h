// mbarrier objects of shared memory, as the PTX manual defines them: a phase ends when the expected arrivals have come and
// as many bytes have been copied as were announced; the next one begins at once. Here a waiting thread lets others run.
#pragma once

#include <cstdint>

namespace at_moe::cuda {

void barrier_init(uint64_t* barrier, uint32_t count);
// Makes the initial state visible to other threads and to the copy engine.
inline void barrier_init_fence() {}
void barrier_arrive(uint64_t* barrier);
// Announces bytes of copies to the phase, then arrives.
void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes);
// Until the phase of this parity (0 for the first one) has ended.
void barrier_wait(const uint64_t* barrier, uint32_t parity);

// By a copy that has landed.
void barrier_complete(uint64_t* barrier, uint32_t bytes);

}  // namespace at_moe::cuda
