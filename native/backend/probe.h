// What the processor can do at best, to compare timings with.
#pragma once

#include <cstddef>

namespace at_moe {

double measure_read_rate(int threads, size_t bytes);  // bytes per second from memory
double measure_fma_rate(int threads);                 // fused multiply-adds per second

}  // namespace at_moe
