// What the processor can do at best, to compare timings with.
#pragma once

#include <cstddef>

#include "core/dtype.h"

namespace at_moe {

double measure_read_rate(int threads, size_t bytes);  // bytes per second from memory
double measure_fma_rate(int threads);                 // fused multiply-adds per second
double measure_product_rate(int threads, Storage);    // the same, of the CPU's products on one large one

}  // namespace at_moe
