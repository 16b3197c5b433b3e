#include "addon/engine_wrap.h"

#include "addon/environment.h"
#include "addon/read_requests.h"
#include "addon/write.h"

namespace at_moe {

using Info = Napi::CallbackInfo;

EngineWrap::EngineWrap(const Info& info) : Napi::ObjectWrap<EngineWrap>(info) {
  guarded(info, [&] {
    Environment& environment = Environment::of(info.Env());
    engine_ = std::make_shared<Engine>(read_engine_options(Fields(info[0], "options")), environment.sink());
    environment.add_engine(engine_);
  });
}

Napi::Function EngineWrap::define(Napi::Env env) {
  using Self = EngineWrap;
  return DefineClass(env, "Engine",
                     {InstanceMethod<&Self::load_model>("loadModel"),
                      InstanceMethod<&Self::load_random>("loadRandom"),
                      InstanceMethod<&Self::create_mixture>("createMixture"),
                      InstanceMethod<&Self::pin_mixture>("pinMixture"),
                      InstanceMethod<&Self::unpin_mixture>("unpinMixture"),
                      InstanceMethod<&Self::release_mixture>("releaseMixture"),
                      InstanceMethod<&Self::read_mixture>("readMixture"),
                      InstanceMethod<&Self::load_vocabulary>("loadVocabulary"),
                      InstanceMethod<&Self::create_grammar>("createGrammar"),
                      InstanceMethod<&Self::release_grammar>("releaseGrammar"),
                      InstanceMethod<&Self::generate>("generate"),
                      InstanceMethod<&Self::cancel_sequence>("cancelSequence"),
                      InstanceMethod<&Self::read_tokens>("readTokens"),
                      InstanceMethod<&Self::cancel_job>("cancelJob"),
                      InstanceMethod<&Self::release_session>("releaseSession"),
                      InstanceMethod<&Self::score>("score"),
                      InstanceMethod<&Self::logits>("logits"),
                      InstanceMethod<&Self::begin_training>("beginTraining"),
                      InstanceMethod<&Self::micro_batch>("microBatch"),
                      InstanceMethod<&Self::evaluate>("evaluate"),
                      InstanceMethod<&Self::finish_step>("finishStep"),
                      InstanceMethod<&Self::discard_gradients>("discardGradients"),
                      InstanceMethod<&Self::trainer_state>("trainerState"),
                      InstanceMethod<&Self::restore_trainer>("restoreTrainer"),
                      InstanceMethod<&Self::gradients>("gradients"),
                      InstanceMethod<&Self::base_values>("baseValues"),
                      InstanceMethod<&Self::end_training>("endTraining"),
                      InstanceMethod<&Self::merged>("merged"),
                      InstanceMethod<&Self::quantize>("quantize"),
                      InstanceMethod<&Self::packed_sections>("packedSections"),
                      InstanceMethod<&Self::packed_section>("packedSection"),
                      InstanceMethod<&Self::memory>("memory"),
                      InstanceMethod<&Self::stats>("stats"),
                      InstanceMethod<&Self::bench>("bench"),
                      InstanceMethod<&Self::probe>("probe"),
                      InstanceMethod<&Self::copy_files>("copyFiles"),
                      InstanceMethod<&Self::dispose>("dispose")});
}

Napi::Value EngineWrap::job(const Info& info, int64_t lane, const BodyMaker& make) {
  const int64_t number = integer_of(info[0], "job");
  Engine::Body body;
  try {
    body = make();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    const auto promise = Napi::Promise::Deferred::New(info.Env());
    promise.Reject(make_error(info.Env(), failure_of(std::current_exception())).Value());
    return promise.Promise();
  }
  const Napi::Promise promise = Environment::of(info.Env()).begin_job(number);
  engine_->run(number, lane, std::move(body));
  return promise;
}

// Trainers count from 1, so their lanes are not the common one.
Napi::Value EngineWrap::trainer_job(const Info& info, const std::function<Engine::Body(int64_t)>& make) {
  const int64_t trainer = integer_of(info[1], "trainer");
  return job(info, trainer, [&] { return make(trainer); });
}

}  // namespace at_moe
