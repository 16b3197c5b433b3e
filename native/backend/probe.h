// What the processor can do at best, to compare timings with.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace at_moe {

double measure_read_rate(int threads, size_t bytes);  // bytes per second from memory
double measure_fma_rate(int threads);                 // fused multiply-adds per second
double measure_product_rate(int threads, Storage);    // the same, of the CPU's products on one large one

// Reading files once into fresh memory. Processor time is that of the whole process.
struct FileCopy {
  double bytes = 0, seconds = 0, processor_seconds = 0;
};
FileCopy copy_files(int threads, const std::vector<std::string>& files);

}  // namespace at_moe
