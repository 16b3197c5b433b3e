// A pass that can be interrupted: a coroutine whose `resume` runs up to the next unit boundary. Passes nest: awaiting a
// pass runs it as a part of the outer one, and its boundaries are the outer one's.
//
//   Pass layer(…) { …; co_await unit_end(); … }
//   Pass model(…) { for (…) co_await layer(…); }
//   while (pass.resume()) { other work may run here }
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

namespace at_moe {

class Pass {
 public:
  struct promise_type {
    std::coroutine_handle<> outer;  // resumed when this one is done
    promise_type* root = this;
    std::coroutine_handle<> innermost;  // of the root: where to resume
    std::exception_ptr error;

    Pass get_return_object() { return Pass(Handle::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> done) noexcept {
        const std::coroutine_handle<> outer = done.promise().outer;
        return outer ? outer : std::noop_coroutine();
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { error = std::current_exception(); }
  };
  using Handle = std::coroutine_handle<promise_type>;

  Pass() = default;
  Pass(Pass&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Pass& operator=(Pass&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Pass() {
    if (handle_) handle_.destroy();
  }

  explicit operator bool() const { return static_cast<bool>(handle_); }

  // Runs one unit. False when the pass is finished; rethrows its exception.
  bool resume() {
    promise_type& root = handle_.promise();
    if (!root.innermost) root.innermost = handle_;
    root.innermost.resume();
    if (!handle_.done()) return true;
    if (root.error) std::rethrow_exception(root.error);
    return false;
  }

  void run() {
    while (resume()) {
    }
  }

  // Awaiting a pass from another one.
  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(Handle outer) noexcept {
    handle_.promise().outer = outer;
    handle_.promise().root = outer.promise().root;
    return handle_;
  }
  void await_resume() const {
    if (handle_.promise().error) std::rethrow_exception(handle_.promise().error);
  }

 private:
  explicit Pass(Handle handle) : handle_(handle) {}
  Handle handle_;
};

// `co_await unit_end()`: other work may run now.
struct UnitEnd {
  bool await_ready() const noexcept { return false; }
  void await_suspend(Pass::Handle at) noexcept { at.promise().root->innermost = at; }
  void await_resume() const noexcept {}
};
inline UnitEnd unit_end() { return {}; }

}  // namespace at_moe
