// Counts the bytes of the buffers that a backend has handed out. Buffers may outlive the meter, and be released on any
// thread.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "backend/backend.h"

namespace at_moe {

class MemoryMeter {
 public:
  Buffer count(Buffer buffer) {
    void* data = buffer.as<void>();
    const size_t bytes = buffer.bytes();
    const auto memory = std::make_shared<Buffer>(std::move(buffer));
    const size_t held = counts_->held += bytes;
    size_t peak = counts_->peak;
    while (peak < held && !counts_->peak.compare_exchange_weak(peak, held)) {
    }
    return Buffer(data, bytes, [memory, counts = counts_](void*, size_t size) {
      *memory = Buffer();
      counts->held -= size;
    });
  }
  MemoryUse use() const { return {counts_->held, counts_->peak}; }

 private:
  struct Counts {
    std::atomic<size_t> held{0}, peak{0};
  };
  std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();
};

}  // namespace at_moe
