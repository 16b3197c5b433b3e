// The JS class `Engine`: converts arguments and posts jobs. The first argument of a job is its number, chosen by lib.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "engine/engine.h"

namespace at_moe {

class EngineWrap : public Napi::ObjectWrap<EngineWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit EngineWrap(const Napi::CallbackInfo& info);

 private:
  using Info = Napi::CallbackInfo;
  using BodyMaker = std::function<Engine::Body()>;

  // A promise of the job; arguments that cannot be used reject it, those of a wrong type throw.
  Napi::Value job(const Info& info, int64_t lane, const BodyMaker& make);
  // The second argument is the trainer, whose jobs run one after the other.
  Napi::Value trainer_job(const Info& info, const std::function<Engine::Body(int64_t)>& make);

  Napi::Value load_model(const Info& info);
  Napi::Value load_random(const Info& info);
  Napi::Value create_mixture(const Info& info);
  Napi::Value pin_mixture(const Info& info);
  void unpin_mixture(const Info& info);
  void release_mixture(const Info& info);
  Napi::Value read_mixture(const Info& info);
  Napi::Value load_vocabulary(const Info& info);
  void create_grammar(const Info& info);
  void release_grammar(const Info& info);
  void generate(const Info& info);
  void cancel_sequence(const Info& info);
  void read_tokens(const Info& info);
  void cancel_job(const Info& info);
  void release_session(const Info& info);
  Napi::Value score(const Info& info);
  Napi::Value logits(const Info& info);
  Napi::Value begin_training(const Info& info);
  Napi::Value micro_batch(const Info& info);
  Napi::Value evaluate(const Info& info);
  Napi::Value finish_step(const Info& info);
  Napi::Value discard_gradients(const Info& info);
  Napi::Value trainer_state(const Info& info);
  Napi::Value restore_trainer(const Info& info);
  Napi::Value gradients(const Info& info);
  Napi::Value base_values(const Info& info);
  Napi::Value end_training(const Info& info);
  Napi::Value merged(const Info& info);
  Napi::Value quantize(const Info& info);
  Napi::Value packed_sections(const Info& info);
  Napi::Value packed_section(const Info& info);
  Napi::Value memory(const Info& info);
  Napi::Value stats(const Info& info);
  Napi::Value bench(const Info& info);
  Napi::Value probe(const Info& info);
  Napi::Value copy_files(const Info& info);
  Napi::Value dispose(const Info& info);

  std::shared_ptr<Engine> engine_;
};

}  // namespace at_moe
