// Requests of lib/native-types.ts into the engine's.
#pragma once

#include "addon/fields.h"
#include "engine/event.h"
#include "engine/requests.h"
#include "training/trainer.h"

namespace at_moe {

EngineOptions read_engine_options(const Fields& from);
GenerateRequest read_generate_request(const Fields& from);
ScoreRequest read_score_request(const Fields& from);
TrainOptions read_train_options(const Fields& from);
MicroBatch read_micro_batch(const Fields& from);
TrainerState read_trainer_state(const Fields& from);
MergeRequest read_merge_request(const Fields& from);
BenchRequest read_bench_request(const Fields& from);

}  // namespace at_moe
