#include "engine/event.h"

#include <new>

namespace at_moe {

Failure failure_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return {known.code(), known.what()};
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory, "the process is out of memory"};
  } catch (const std::exception& other) {
    return {Code::kInternal, other.what()};
  } catch (...) {
    return {Code::kInternal, "unknown error"};
  }
}

}  // namespace at_moe
