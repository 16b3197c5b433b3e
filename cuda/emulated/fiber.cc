#include "cuda/emulated/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom_old, size_t* size_old);
}
#endif

extern "C" void at_moe_switch_stack(void** save, void* to);
asm(R"(
.text
.globl at_moe_switch_stack
.hidden at_moe_switch_stack
.type at_moe_switch_stack,@function
at_moe_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size at_moe_switch_stack,.-at_moe_switch_stack
)");

namespace at_moe::cuda::simt {

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;  // mapped as it is touched
constexpr int kSavedRegisters = 6;
thread_local Fiber* came_from = nullptr;

}  // namespace

Fiber::Fiber(Caller) {}

Fiber::Fiber() : bytes_(kStackBytes) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  stack_ = static_cast<char*>(memory);
  low_ = stack_;
  mprotect(stack_, static_cast<size_t>(getpagesize()), PROT_NONE);
}

Fiber::Fiber(Fiber&& other) noexcept
    : stack_pointer_(other.stack_pointer_),
      stack_(std::exchange(other.stack_, nullptr)),
      low_(other.low_),
      bytes_(other.bytes_) {}

Fiber::~Fiber() {
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::start(void (*entry)()) {
  auto top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_ + kStackBytes) & ~uintptr_t{63});
  *--top = nullptr;  // the return address of `entry`
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::change(Fiber& from, Fiber& to) {
  came_from = &from;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.sanitizer_, to.low_, to.bytes_);
#endif
  at_moe_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#ifdef __SANITIZE_ADDRESS__
  const void* low;
  size_t bytes;
  __sanitizer_finish_switch_fiber(from.sanitizer_, &low, &bytes);
  came_from->low_ = low;
  came_from->bytes_ = bytes;
#endif
}

void fiber_arrived() {
#ifdef __SANITIZE_ADDRESS__
  const void* low;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
  came_from->low_ = low;
  came_from->bytes_ = bytes;
#endif
}

}  // namespace at_moe::cuda::simt
