// The one exception type of native code; the addon turns it into a coded JS error.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace at_moe {

// Stable codes; lib/errors.ts prefixes them with ERR_AT_MOE_.
enum class Code {
  kAborted,
  kBadFile,
  kBusy,
  kContextLength,
  kDeadline,
  kDeviceLost,
  kDeviceUnavailable,
  kDisposed,
  kInternal,
  kIo,
  kMismatch,
  kNotFinite,
  kOutOfMemory,
  kQueueFull,
  kRouting,
  kUnsupported,
};

const char* code_name(Code code);  // "ABORTED", "BAD_FILE", …

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

template <typename... Parts>
std::string concat(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

template <typename... Parts>
[[noreturn]] void fail(Code code, Parts&&... parts) {
  throw Error(code, concat(std::forward<Parts>(parts)...));
}

// For broken invariants of our own callers: a bug, not a user error.
template <typename... Parts>
void require(bool condition, Parts&&... parts) {
  if (!condition) fail(Code::kInternal, std::forward<Parts>(parts)...);
}

}  // namespace at_moe
