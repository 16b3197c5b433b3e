#include "engine/logits.h"

#include "core/status.h"

namespace at_moe {

Pass sequence_logits(const Model& model, Scheduler& scheduler, ScoreRequest request,
                     std::shared_ptr<SequenceRouting> routing, std::vector<float>& result) {
  const Limits& limits = scheduler.limits();
  const int64_t size = static_cast<int64_t>(request.ids.size());
  scheduler.check_ids(request.ids);
  if (request.first < 1 || request.first > size)
    fail(Code::kMismatch, request.first, " of ", size, " ids as instruction");
  if (size > limits.context_length)
    fail(Code::kContextLength, "the text has ", size, " tokens, the context holds ", limits.context_length);
  PageLease lease(scheduler.pages());
  lease.held.resize(1);
  if (!lease.pages.grow(lease.held.front(), size))
    fail(Code::kOutOfMemory, "the KV cache has no room for ", size, " tokens");
  SequenceRows rows;
  rows.ids = std::move(request.ids);
  rows.pages = lease.held.front();
  rows.routing = routing.get();
  rows.routing->instruction_rows = request.first;
  rows.logits = &result;
  Workspace workspace(model, size, 1, KvPages::pages_of(size), limits.chunk_rows);
  ForwardResult last;
  co_await forward(model, workspace, scheduler.pool(), std::span(&rows, 1), last);
}

}  // namespace at_moe
