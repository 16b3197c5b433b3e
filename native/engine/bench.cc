#include "engine/bench.h"

#include <chrono>

#include "backend/probe.h"
#include "core/rng.h"
#include "core/status.h"

namespace at_moe {

namespace {

using Clock = std::chrono::steady_clock;
using RoutingFactory = std::function<std::shared_ptr<SequenceRouting>()>;

struct Variant {
  std::vector<std::shared_ptr<SequenceRouting>> routing;
  std::vector<double>* times = nullptr;
};

std::vector<SequenceRows> rows_of(const Variant& variant, const PageLease& lease, int64_t position, int64_t count,
                                  int64_t vocab) {
  std::vector<SequenceRows> rows(variant.routing.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t row = 0; row < count; ++row) {
      rows[i].ids.push_back(
          static_cast<int32_t>(philox(1, i, static_cast<uint64_t>(position + row))[0] % static_cast<uint64_t>(vocab)));
    }
    rows[i].position = position;
    rows[i].pages = lease.held[i];
    rows[i].routing = variant.routing[i].get();
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

std::vector<std::shared_ptr<SequenceRouting>> make(int64_t count, const RoutingFactory& one) {
  std::vector<std::shared_ptr<SequenceRouting>> routing;
  for (int64_t i = 0; i < count; ++i) routing.push_back(one());
  return routing;
}

}  // namespace

Pass time_steps(const Model& model, Scheduler& scheduler, BenchRequest request, RoutingFactory make_routing,
                BenchResult& result) {
  const Limits& limits = scheduler.limits();
  if (request.rows < 1 || request.context < 1 || request.steps < 1)
    fail(Code::kMismatch, "rows, context and steps are at least 1");
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
  std::vector<Variant> variants = {{make(request.rows, SequenceRouting::base), &result.base}};
  const bool mixed = request.routing.kind != RoutingRequest::Kind::kBase;
  if (mixed) variants.push_back({make(request.rows, make_routing), &result.mixture});
  for (const Variant& variant : variants) {
    run_step(model, prefill, scheduler.pool(), rows_of(variant, lease, 0, request.context, vocab));
    co_await unit_end();
    if (!request.decode) continue;
    run_step(model, decode, scheduler.pool(), rows_of(variant, lease, request.context, 1, vocab));
  }
  const DeviceWork before = model.backend().work();
  const int64_t total = request.steps * static_cast<int64_t>(variants.size());
  for (int64_t step = 0; step < total; ++step) {
    const int64_t turn = request.interleave ? step % static_cast<int64_t>(variants.size()) : step / request.steps;
    Variant& variant = variants[static_cast<size_t>(turn)];
    if (!request.decode && turn == 1) variant.routing = make(request.rows, make_routing);
    const int64_t position = request.decode ? request.context : 0, count = request.decode ? 1 : request.context;
    const std::vector<SequenceRows> rows = rows_of(variant, lease, position, count, vocab);
    variant.times->push_back(run_step(model, request.decode ? decode : prefill, scheduler.pool(), rows));
    co_await unit_end();
  }
  result.work = model.backend().work() - before;
}

ProbeResult measure_rates(int threads, Storage storage) {
  constexpr size_t kProbeBytes = size_t{256} << 20;
  return {measure_read_rate(threads, kProbeBytes), measure_fma_rate(threads), measure_product_rate(threads, storage)};
}

}  // namespace at_moe
