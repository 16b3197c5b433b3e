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

void refuse(EventSink& sink, const GenerateRequest& request, const Failure& failure) {
  DoneEvent done;
  done.reason = DoneEvent::Reason::kError;
  done.usage.prompt_tokens = static_cast<int64_t>(request.ids.size());
  done.failure = failure;
  for (int64_t i = 0; i < request.n; ++i) {
    done.sequence = request.sequence + i;
    sink.push(done);
  }
}

}  // namespace at_moe
