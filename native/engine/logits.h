// The logits of every row of one sequence: what golden cases are compared by.
#pragma once

#include <memory>
#include <vector>

#include "engine/requests.h"
#include "engine/scheduler.h"

namespace at_moe {

// [ids, V]. The ids before `first` are the instruction.
Pass sequence_logits(const Model& model, Scheduler& scheduler, ScoreRequest request,
                     std::shared_ptr<SequenceRouting> routing, std::vector<float>& result);

}  // namespace at_moe
