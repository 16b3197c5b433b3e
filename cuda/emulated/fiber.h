// A stack and a place to go on. Switching saves the registers that the x86-64 System V ABI leaves to the callee.
#pragma once

#include <cstddef>

namespace at_moe::cuda::simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(Fiber&& other) noexcept;
  Fiber(const Fiber&) = delete;

  // Makes the next switch to this fiber call `entry`, which never returns.
  void start(void (*entry)());
  // Goes on with `to`; returns when something switches back here. `from` and `to` may be the thread's own stack.
  static void change(Fiber& from, Fiber& to);

  // The thread's own stack.
  struct Caller {};
  explicit Fiber(Caller);

 private:
  friend void fiber_arrived();
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;  // null: the thread's own
  const void* low_ = nullptr;
  size_t bytes_ = 0;
  void* sanitizer_ = nullptr;
};

// To be called first by an entry function.
void fiber_arrived();

}  // namespace at_moe::cuda::simt
