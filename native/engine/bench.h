// Timings taken inside the engine, where nothing but the passes is measured.
#pragma once

#include <functional>

#include "engine/event.h"
#include "engine/requests.h"
#include "engine/scheduler.h"

namespace at_moe {

// Makes the routing of one sequence from entry i of the request's routings.
using RoutingFactory = std::function<std::shared_ptr<SequenceRouting>(size_t i)>;

// Steps of each routing over the same rows.
Pass time_steps(const Model& model, Scheduler& scheduler, BenchRequest request, RoutingFactory make_routing,
                BenchResult& result);

ProbeResult measure_rates(int threads, Storage storage);

}  // namespace at_moe
