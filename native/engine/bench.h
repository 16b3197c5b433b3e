// Timings taken inside the engine, where nothing but the passes is measured.
#pragma once

#include <functional>

#include "engine/event.h"
#include "engine/requests.h"
#include "engine/scheduler.h"

namespace at_moe {

// Steps of the base and of the mixture over the same rows. `make_routing` makes the routing of one sequence.
Pass time_steps(const Model& model, Scheduler& scheduler, BenchRequest request,
                std::function<std::shared_ptr<SequenceRouting>()> make_routing, BenchResult& result);

ProbeResult measure_rates(int threads, Storage storage);

}  // namespace at_moe
