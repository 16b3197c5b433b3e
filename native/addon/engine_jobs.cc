// The methods of the class `Engine` one by one.
#include "addon/engine_wrap.h"
#include "addon/environment.h"
#include "addon/read_grammar.h"
#include "addon/read_requests.h"
#include "addon/read_tensors.h"
#include "addon/write.h"
#include "engine/worker.h"

namespace at_moe {

namespace {

using Info = Napi::CallbackInfo;

// Of jobs that may wait long for a mixture's place on the device; the common one without a mixture.
int64_t waiting_lane(int64_t mixture) { return mixture ? -mixture : kCommonLane; }

// A pass without interruption.
template <typename F>
Pass at_once(F work, JobResult& result) {
  result = work();
  co_return;
}

}  // namespace

Napi::Value EngineWrap::load_model(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    const int64_t number = integer_of(info[0], "job");
    LoadRequest request = read_load_request(Fields(info[1], "descriptor"), Fields(info[2], "options"));
    return [number, request = std::move(request)](Worker& worker, JobResult& result) {
      return worker.load(number, request, result);
    };
  });
}

Napi::Value EngineWrap::load_random(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    const int64_t number = integer_of(info[0], "job");
    LoadRequest request;
    request.config = read_model_config(Fields(info[1], "config"));
    request.random_seed = static_cast<uint64_t>(integer_of(info[2], "seed"));
    request.options = read_load_options(Fields(info[3], "options"));
    return [number, request = std::move(request)](Worker& worker, JobResult& result) {
      return worker.load(number, request, result);
    };
  });
}

Napi::Value EngineWrap::create_mixture(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    MixtureSource source = read_mixture_source(Fields(info[1], "mixture"));
    const int64_t replaced = integer_of(info[2], "replaced");
    return [source = std::move(source), replaced](Worker& worker, JobResult& result) {
      return worker.create_mixture(source, replaced, result);
    };
  });
}

Napi::Value EngineWrap::pin_mixture(const Info& info) {
  const int64_t mixture = integer_of(info[1], "mixture");
  return job(info, waiting_lane(mixture), [mixture]() -> Engine::Body {
    return [mixture](Worker& worker, JobResult& result) { return worker.pin_mixture(mixture, result); };
  });
}

void EngineWrap::unpin_mixture(const Info& info) {
  const int64_t mixture = integer_of(info[0], "mixture");
  engine_->post([mixture](Worker& worker) { worker.unpin_mixture(mixture); });
}

void EngineWrap::release_mixture(const Info& info) {
  const int64_t mixture = integer_of(info[0], "mixture");
  engine_->post([mixture](Worker& worker) { worker.release_mixture(mixture); });
}

Napi::Value EngineWrap::read_mixture(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    const int64_t mixture = integer_of(info[1], "mixture");
    if (!info[2].IsString()) throw Napi::TypeError::New(info.Env(), "prefix: expected a string");
    const std::string prefix = info[2].As<Napi::String>();
    return
        [mixture, prefix](Worker& worker, JobResult& result) { return worker.read_mixture(mixture, prefix, result); };
  });
}

Napi::Value EngineWrap::load_vocabulary(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    std::shared_ptr<Vocabulary> vocabulary = read_vocabulary(Fields(info[1], "vocabulary"));
    return [vocabulary](Worker& worker, JobResult& result) { return worker.load_vocabulary(vocabulary, result); };
  });
}

void EngineWrap::create_grammar(const Info& info) {
  const int64_t number = integer_of(info[0], "grammar");
  guarded(info, [&] {
    std::shared_ptr<const Grammar> grammar = read_grammar(Fields(info[1], "description"));
    engine_->post([number, grammar](Worker& worker) { worker.constraints().add(number, grammar); });
  });
}

void EngineWrap::release_grammar(const Info& info) {
  const int64_t number = integer_of(info[0], "grammar");
  engine_->post([number](Worker& worker) { worker.constraints().release(number); });
}

void EngineWrap::generate(const Info& info) {
  int64_t sequence = integer_of(info[0], "sequence");
  if (!info[1].IsArray()) throw Napi::TypeError::New(info.Env(), "requests: expected an array");
  const auto given = info[1].As<Napi::Array>();
  std::vector<GenerateRequest> requests;
  for (uint32_t i = 0; i < given.Length(); ++i) {
    requests.push_back(read_generate_request(Fields(given.Get(i), "request")));
    requests.back().sequence = sequence;
    sequence += requests.back().n;
  }
  engine_->generate(std::move(requests));
}

void EngineWrap::cancel_sequence(const Info& info) {
  const int64_t sequence = integer_of(info[0], "sequence");
  engine_->post([sequence](Worker& worker) { worker.cancel_sequence(sequence); });
}

void EngineWrap::read_tokens(const Info& info) {
  const int64_t sequence = integer_of(info[0], "sequence"), tokens = integer_of(info[1], "tokens");
  engine_->post([sequence, tokens](Worker& worker) { worker.read_tokens(sequence, tokens); });
}

void EngineWrap::cancel_job(const Info& info) {
  const int64_t number = integer_of(info[0], "job");
  engine_->post([number](Worker& worker) { worker.cancel_job(number); });
}

void EngineWrap::release_session(const Info& info) {
  const int64_t session = integer_of(info[0], "session");
  engine_->post([session](Worker& worker) { worker.release_session(session); });
}

Napi::Value EngineWrap::score(const Info& info) {
  const int64_t number = integer_of(info[0], "job");
  ScoreRequest request = read_score_request(Fields(info[1], "request"));
  request.job = number;
  const Napi::Promise promise = Environment::of(info.Env()).begin_job(number);
  engine_->score(std::move(request));
  return promise;
}

Napi::Value EngineWrap::logits(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    ScoreRequest request = read_score_request(Fields(info[1], "request"));
    return [request = std::move(request)](Worker& worker, JobResult& result) { return worker.logits(request, result); };
  });
}

Napi::Value EngineWrap::begin_training(const Info& info) {
  const int64_t mixture = info[1].IsNull() ? 0 : integer_of(info[1], "mixture");
  return job(info, waiting_lane(mixture), [&]() -> Engine::Body {
    const TrainOptions options = read_train_options(Fields(info[2], "options"));
    return [mixture, options](Worker& worker, JobResult& result) {
      return worker.begin_training(mixture, options, result);
    };
  });
}

Napi::Value EngineWrap::micro_batch(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    MicroBatch batch = read_micro_batch(Fields(info[2], "batch"));
    return [trainer, batch = std::move(batch)](Worker& worker, JobResult& result) {
      return worker.trainers().micro_batch(trainer, batch, result);
    };
  });
}

Napi::Value EngineWrap::evaluate(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    MicroBatch batch = read_micro_batch(Fields(info[2], "batch"));
    return [trainer, batch = std::move(batch)](Worker& worker, JobResult& result) {
      return worker.trainers().evaluate(trainer, batch, result);
    };
  });
}

Napi::Value EngineWrap::finish_step(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    if (!info[2].IsNumber()) throw Napi::TypeError::New(info.Env(), "learningRate: expected a number");
    const float rate = info[2].As<Napi::Number>().FloatValue();
    return [trainer, rate](Worker& worker, JobResult& result) {
      return worker.trainers().finish_step(trainer, rate, result);
    };
  });
}

Napi::Value EngineWrap::discard_gradients(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    return [trainer](Worker& worker, JobResult& result) {
      return at_once(
          [&trainers = worker.trainers(), trainer] {
            trainers.at(trainer).discard_gradients();
            return std::monostate();
          },
          result);
    };
  });
}

Napi::Value EngineWrap::trainer_state(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    return [trainer](Worker& worker, JobResult& result) {
      return at_once(
          [&trainers = worker.trainers(), trainer] {
            return TrainerState{trainers.at(trainer).step(), trainers.at(trainer).state()};
          },
          result);
    };
  });
}

Napi::Value EngineWrap::restore_trainer(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    TrainerState state = read_trainer_state(Fields(info[2], "state"));
    return [trainer, state = std::move(state)](Worker& worker, JobResult& result) {
      return at_once(
          [&trainers = worker.trainers(), trainer, &state] {
            trainers.at(trainer).restore(state.tensors, state.step);
            return std::monostate();
          },
          result);
    };
  });
}

Napi::Value EngineWrap::gradients(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    return [trainer](Worker& worker, JobResult& result) {
      return at_once([&trainers = worker.trainers(), trainer] { return trainers.at(trainer).gradients(); }, result);
    };
  });
}

Napi::Value EngineWrap::base_values(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    return [trainer](Worker& worker, JobResult& result) {
      return at_once([&trainers = worker.trainers(), trainer] { return trainers.at(trainer).base_values(); }, result);
    };
  });
}

Napi::Value EngineWrap::end_training(const Info& info) {
  return trainer_job(info, [&](int64_t trainer) -> Engine::Body {
    return [trainer](Worker& worker, JobResult& result) {
      return at_once(
          [&trainers = worker.trainers(), trainer] {
            trainers.end(trainer);
            return std::monostate();
          },
          result);
    };
  });
}

Napi::Value EngineWrap::merged(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    MergeRequest request = read_merge_request(Fields(info[1], "request"));
    return [request = std::move(request)](Worker& worker, JobResult& result) { return worker.merged(request, result); };
  });
}

Napi::Value EngineWrap::quantize(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    TensorReader reader;
    TensorSource source = reader.read(Fields(info[1], "tensor"));
    return [source = std::move(source)](Worker& worker, JobResult& result) { return worker.quantize(source, result); };
  });
}

Napi::Value EngineWrap::packed_sections(const Info& info) {
  return job(info, kCommonLane, []() -> Engine::Body {
    return [](Worker& worker, JobResult& result) { return worker.packed_sections(result); };
  });
}

Napi::Value EngineWrap::packed_section(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    std::string name = Fields(info[1], "section").text("name");
    return [name = std::move(name)](Worker& worker, JobResult& result) { return worker.packed_section(name, result); };
  });
}

Napi::Value EngineWrap::memory(const Info& info) {
  return job(info, kCommonLane,
             []() -> Engine::Body { return [](Worker& worker, JobResult& result) { return worker.memory(result); }; });
}

Napi::Value EngineWrap::stats(const Info& info) {
  const int64_t number = integer_of(info[0], "job");
  const Napi::Promise promise = Environment::of(info.Env()).begin_job(number);
  engine_->stats(number);
  return promise;
}

Napi::Value EngineWrap::bench(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    BenchRequest request = read_bench_request(Fields(info[1], "request"));
    return [request = std::move(request)](Worker& worker, JobResult& result) { return worker.bench(request, result); };
  });
}

Napi::Value EngineWrap::probe(const Info& info) {
  return job(info, kCommonLane,
             [&]() -> Engine::Body { return [](Worker& worker, JobResult& result) { return worker.probe(result); }; });
}

Napi::Value EngineWrap::copy_files(const Info& info) {
  return job(info, kCommonLane, [&]() -> Engine::Body {
    std::vector<std::string> files = Fields(info[1], "copyFiles").texts("files");
    return [files = std::move(files)](Worker& worker, JobResult& result) { return worker.copy_files(files, result); };
  });
}

Napi::Value EngineWrap::dispose(const Info& info) {
  return Environment::of(info.Env()).dispose(integer_of(info[0], "job"), engine_);
}

}  // namespace at_moe
