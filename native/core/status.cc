#include "core/status.h"

namespace at_moe {

const char* code_name(Code code) {
  switch (code) {
    case Code::kAborted: return "ABORTED";
    case Code::kBadFile: return "BAD_FILE";
    case Code::kBusy: return "BUSY";
    case Code::kContextLength: return "CONTEXT_LENGTH";
    case Code::kDeadline: return "DEADLINE";
    case Code::kDeviceLost: return "DEVICE_LOST";
    case Code::kDeviceUnavailable: return "DEVICE_UNAVAILABLE";
    case Code::kDisposed: return "DISPOSED";
    case Code::kInternal: return "INTERNAL";
    case Code::kIo: return "IO";
    case Code::kMismatch: return "MISMATCH";
    case Code::kNotFinite: return "NOT_FINITE";
    case Code::kOutOfMemory: return "OUT_OF_MEMORY";
    case Code::kQueueFull: return "QUEUE_FULL";
    case Code::kRouting: return "ROUTING";
    case Code::kUnsupported: return "UNSUPPORTED";
  }
  return "INTERNAL";
}

}  // namespace at_moe
