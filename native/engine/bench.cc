#include "engine/bench.h"

#include <chrono>

#include "backend/probe.h"
#include "core/rng.h"
#include "core/status.h"

namespace at_moe {

namespace {

using Clock = std::chrono::steady_clock;
using Routings = std::vector<std::shared_ptr<SequenceRouting>>;  // of each sequence

std::vector<SequenceRows> rows_of(const Routings& routings, const PageLease& lease, int64_t position, int64_t count,
                                  int64_t vocab) {
  std::vector<SequenceRows> rows(routings.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t row = 0; row < count; ++row) {
      rows[i].ids.push_back(
          static_cast<int32_t>(philox(1, i, static_cast<uint64_t>(position + row))[0] % static_cast<uint64_t>(vocab)));
    }
    rows[i].position = position;
    rows[i].pages = lease.held[i];
    rows[i].routing = routings[i].get();
    rows[i].routing->instruction_rows = count;
  }
  return rows;
}

// One step: the pass and a greedy choice. Returns the seconds.
double run_step(const Model& model, Workspace& workspace, KvPool& kv, std::vector<SequenceRows> rows) {
  const Clock::time_point start = Clock::now();
  ForwardResult result;
  forward(model, workspace, kv, rows, result).run();
  const std::vector<SamplingRow> options(rows.size());
  std::vector<int32_t> tokens(rows.size());
  model.backend().sample(Sampling{result.logits, options, tokens.data(), nullptr});
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Routings make(int64_t count, const RoutingFactory& one, size_t variant) {
  Routings routings;
  for (int64_t i = 0; i < count; ++i) routings.push_back(one(variant));
  return routings;
}

// Which variant a step is of. Interleaved, a turn begins with the first and takes the others forwards and backwards by
// turns: of three, each follows each other one equally often, and finds what that has left in the caches.
size_t variant_of(int64_t step, int64_t variants, const BenchRequest& request) {
  if (!request.interleave) return static_cast<size_t>(step / request.steps);
  const int64_t turn = step / variants, place = step % variants;
  return static_cast<size_t>(place > 0 && turn % 2 == 1 ? variants - place : place);
}

}  // namespace

Pass time_steps(const Model& model, Scheduler& scheduler, BenchRequest request, RoutingFactory make_routing,
                BenchResult& result) {
  const Limits& limits = scheduler.limits();
  if (request.rows < 1 || request.context < 1 || request.steps < 1 || request.routings.empty())
    fail(Code::kMismatch, "rows, context, steps and the number of routings are at least 1");
  if (request.context + 1 > limits.context_length)
    fail(Code::kContextLength, "the context holds ", limits.context_length, " tokens");
  PageLease lease(scheduler.pages());
  lease.held.resize(static_cast<size_t>(request.rows));
  for (std::vector<int32_t>& pages : lease.held) {
    if (lease.pages.grow(pages, request.context + 1)) continue;
    fail(Code::kOutOfMemory, "the KV cache of ", limits.kv_tokens, " tokens has no room for ", request.rows,
         " sequences of ", request.context + 1);
  }
  const int64_t pages = KvPages::pages_of(request.context + 1);
  Workspace prefill(model, request.rows * request.context, request.rows, pages, limits.chunk_rows);
  Workspace decode(model, request.rows, request.rows, pages, request.rows);
  const int64_t vocab = model.config().vocab_size;
  std::vector<Routings> variants;
  for (size_t i = 0; i < request.routings.size(); ++i) {
    variants.push_back(make(request.rows, make_routing, i));
    run_step(model, prefill, scheduler.pool(), rows_of(variants[i], lease, 0, request.context, vocab));
    co_await unit_end();
    if (!request.decode) continue;
    run_step(model, decode, scheduler.pool(), rows_of(variants[i], lease, request.context, 1, vocab));
  }
  result.seconds.resize(variants.size());
  const DeviceWork before = model.backend().work();
  const auto count = static_cast<int64_t>(variants.size());
  for (int64_t step = 0; step < request.steps * count; ++step) {
    const size_t i = variant_of(step, count, request);
    if (!request.decode) variants[i] = make(request.rows, make_routing, i);  // a prefill may fix it
    const int64_t position = request.decode ? request.context : 0, length = request.decode ? 1 : request.context;
    const std::vector<SequenceRows> rows = rows_of(variants[i], lease, position, length, vocab);
    result.seconds[i].push_back(run_step(model, request.decode ? decode : prefill, scheduler.pool(), rows));
    co_await unit_end();
  }
  result.work = model.backend().work() - before;
}

ProbeResult measure_rates(int threads, Storage storage) {
  constexpr size_t kProbeBytes = size_t{256} << 20;
  return {measure_read_rate(threads, kProbeBytes), measure_fma_rate(threads), measure_product_rate(threads, storage)};
}

}  // namespace at_moe
