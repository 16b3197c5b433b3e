#include "training/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"
#include "training/state.h"
#include "training/step.h"

namespace at_moe {

namespace {

Arena make_arena(Backend& backend, const char* name, float* parameters, int64_t count) {
  Arena arena{name, parameters, count, {}, {}, {}};
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
  for (Buffer* buffer : {&arena.gradient, &arena.moment1, &arena.moment2}) {
    *buffer = backend.allocate(bytes);
    backend.zero(buffer->as<void>(), bytes);
  }
  return arena;
}

std::vector<float> download(Backend& backend, const float* device, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  backend.download(values.data(), device, values.size() * sizeof(float));
  return values;
}

}  // namespace

BaseOffsets::BaseOffsets(const Model& model) {
  layers.resize(static_cast<size_t>(model.config().num_layers));
  embedding = model.parameter_offset("embed_tokens.weight");
  head = model.config().tie_word_embeddings ? embedding : model.parameter_offset("lm_head.weight");
  final_norm = model.parameter_offset("norm.weight");
  for (size_t index = 0; index < layers.size(); ++index) {
    const std::string prefix = concat("layers.", index, ".");
    Layer& layer = layers[index];
    layer.input_norm = model.parameter_offset(prefix + "input_layernorm.weight");
    layer.post_norm = model.parameter_offset(prefix + "post_attention_layernorm.weight");
    layer.q_norm = model.parameter_offset(prefix + "self_attn.q_norm.weight");
    layer.k_norm = model.parameter_offset(prefix + "self_attn.k_norm.weight");
    for (int module = 0; module < kModules; ++module) {
      layer.weight[static_cast<size_t>(module)] =
          model.parameter_offset(concat(prefix, module_name(module), ".weight"));
      layer.bias[static_cast<size_t>(module)] = model.parameter_offset(concat(prefix, module_name(module), ".bias"));
    }
  }
}

Trainer::State::State(Model& model_, std::shared_ptr<Mixture> mixture_, TrainOptions options_)
    : model(model_), backend(model_.backend()), mixture(std::move(mixture_)), options(options_) {
  if (trains_base()) {
    require(!mixture, "the base is trained without a mixture");
    if (!model.trainable()) fail(Code::kUnsupported, "the model was not loaded to be trained: no f32 parameters");
    base = make_arena(backend, "base", model.arena(), model.parameter_count());
    offsets = std::make_unique<BaseOffsets>(model);
    return;
  }
  require(mixture != nullptr, "training needs a mixture");
  require(trains_router() == mixture->has_router(), "the mixture does not fit the training target");
  mixture->enable_training(trains_adapters(), trains_router());
  if (trains_adapters())
    adapters = make_arena(backend, "adapters", mixture->adapter_parameters(), mixture->adapter_count());
  if (trains_router()) routers = make_arena(backend, "routers", mixture->router_parameters(), mixture->router_count());
}

// f16 ends at 2^-24 and 2^16: the power of two puts the largest slope of a logit at 2^7 to 2^8, as most of what follows
// from it is smaller. It changes no bits of a gradient that is in range.
float Trainer::State::scale_losses(double largest) {
  constexpr int kLogitBits = 8;
  if (loss_scale == 0) {
    const bool narrow = backend.activation_type() == DType::f16;
    loss_scale = narrow ? std::exp2f(static_cast<float>(kLogitBits - std::ilogb(largest) - 1)) : 1.0f;
  }
  return loss_scale;
}

Tape& Trainer::State::tape_for(int64_t rows, int64_t sequences) {
  if (!tape || tape->rows() < rows || tape->sequences() < sequences) {
    const int64_t most_rows = std::max(rows, tape ? tape->rows() : 0);
    const int64_t most_sequences = std::max(sequences, tape ? tape->sequences() : 0);
    tape.reset();
    const int64_t slots = options.recompute ? 1 : model.config().num_layers;
    tape = std::make_unique<Tape>(model, mixture.get(), slots, most_rows, most_sequences);
  }
  return *tape;
}

std::vector<Arena*> Trainer::State::arenas() {
  std::vector<Arena*> all;
  for (Arena* arena : {&adapters, &routers, &base}) {
    if (arena->count) all.push_back(arena);
  }
  return all;
}

Trainer::Trainer(Model& model, std::shared_ptr<Mixture> mixture, TrainOptions options)
    : state_(std::make_unique<State>(model, std::move(mixture), options)) {}

Trainer::~Trainer() = default;

Pass Trainer::micro_batch(const MicroBatch& batch, MicroBatchResult& result) {
  TrainingStep step(*state_, batch, result, true);
  co_await step.run();
  state_->step_rows += static_cast<int64_t>(batch.ids.size());
  state_->step_sequences += static_cast<int64_t>(batch.offsets.size()) - 1;
}

Pass Trainer::evaluate(const MicroBatch& batch, MicroBatchResult& result) {
  TrainingStep step(*state_, batch, result, false);
  co_await step.run();
}

Pass Trainer::finish_step(float learning_rate, StepResult& result) {
  State& state = *state_;
  double squares = 0;
  for (Arena* arena : state.arenas()) {
    squares += state.backend.squared_norm({arena->gradients(), arena->count});
    co_await unit_end();
  }
  const double scale = state.loss_scale == 0 ? 1.0 : state.loss_scale;
  result.gradient_norm = std::sqrt(squares) / scale;
  if (!std::isfinite(result.gradient_norm)) {
    discard_gradients();
    fail(Code::kNotFinite, "the gradient is not finite in step ", state.step + 1, "; nothing was updated");
  }
  const double limit = state.options.max_grad_norm;
  const double clip = limit > 0 ? std::min(1.0, limit / (result.gradient_norm + 1e-6)) : 1.0;
  ++state.step;
  for (Arena* arena : state.arenas()) {
    AdamW update;
    update.parameter = arena->parameters;
    update.gradient = arena->gradients();
    update.moment1 = arena->moment1.as<float>();
    update.moment2 = arena->moment2.as<float>();
    update.count = arena->count;
    update.learning_rate = learning_rate;
    update.beta1 = state.options.beta1;
    update.beta2 = state.options.beta2;
    update.epsilon = state.options.epsilon;
    update.weight_decay = state.options.weight_decay;
    update.gradient_scale = static_cast<float>(clip / scale);
    update.step = state.step;
    state.backend.update(update);
  }
  if (state.trains_adapters()) state.mixture->repack_adapters();
  if (state.trains_router()) state.mixture->repack_routers();
  if (state.trains_base()) state.model.repack();
  discard_gradients();
}

void Trainer::discard_gradients() {
  for (Arena* arena : state_->arenas()) {
    state_->backend.zero(arena->gradients(), static_cast<size_t>(arena->count) * sizeof(float));
  }
  state_->step_rows = state_->step_sequences = 0;
  state_->loss_scale = 0;
}

int64_t Trainer::step() const { return state_->step; }

size_t Trainer::device_bytes() const {
  size_t bytes = state_->tape ? state_->tape->bytes() : 0;
  for (Arena* arena : state_->arenas()) bytes += 3 * arena->gradient.bytes();
  return bytes;
}

std::vector<NamedValues> Trainer::state() const {
  std::vector<NamedValues> values;
  for (Arena* arena : state_->arenas()) {
    const std::pair<const char*, const float*> parts[] = {{".parameters", arena->parameters},
                                                          {".moment1", arena->moment1.as<float>()},
                                                          {".moment2", arena->moment2.as<float>()}};
    for (const auto& [suffix, device] : parts) {
      values.push_back({arena->name + suffix, {arena->count}, download(state_->backend, device, arena->count)});
    }
  }
  return values;
}

void Trainer::restore(const std::vector<NamedValues>& values, int64_t step) {
  for (Arena* arena : state_->arenas()) {
    const std::pair<const char*, float*> parts[] = {{".parameters", arena->parameters},
                                                    {".moment1", arena->moment1.as<float>()},
                                                    {".moment2", arena->moment2.as<float>()}};
    for (const auto& [suffix, device] : parts) {
      const std::string name = arena->name + suffix;
      const auto found =
          std::find_if(values.begin(), values.end(), [&](const NamedValues& v) { return v.name == name; });
      if (found == values.end() || static_cast<int64_t>(found->values.size()) != arena->count) {
        fail(Code::kMismatch, "the checkpoint has no ", name, " of ", arena->count, " values");
      }
      state_->backend.upload(device, found->values.data(), found->values.size() * sizeof(float));
    }
  }
  state_->step = step;
  if (state_->trains_adapters()) state_->mixture->repack_adapters();
  if (state_->trains_router()) state_->mixture->repack_routers();
  if (state_->trains_base()) state_->model.repack();
}

std::vector<NamedValues> Trainer::gradients() const {
  std::vector<NamedValues> values;
  const State& state = *state_;
  const float scale = state.loss_scale == 0 ? 1.0f : state.loss_scale;
  auto add = [&](const std::string& name, const float* arena, int64_t offset, int64_t rows, int64_t cols,
                 int64_t stride) {
    NamedValues tensor{name, {rows, cols}, {}};
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> part = download(state.backend, arena + offset + row * stride, cols);
      for (const float value : part) tensor.values.push_back(value / scale);
    }
    values.push_back(std::move(tensor));
  };
  if (state.mixture) {
    for (const ParameterSlice& slice : state.mixture->slices()) {
      const Arena& arena = slice.router ? state.routers : state.adapters;
      if (arena.count) add(slice.name, arena.gradients(), slice.offset, slice.rows, slice.cols, slice.stride);
    }
  }
  if (state.trains_base()) {
    for (const BaseParameter& parameter : state.model.parameters()) {
      add(parameter.name, state.base.gradients(), parameter.offset, parameter.rows, parameter.cols, parameter.cols);
    }
  }
  return values;
}

std::vector<NamedValues> Trainer::base_values() const {
  std::vector<NamedValues> values;
  for (const BaseParameter& parameter : state_->model.parameters()) {
    values.push_back(
        {parameter.name,
         {parameter.rows, parameter.cols},
         download(state_->backend, state_->model.arena() + parameter.offset, parameter.rows * parameter.cols)});
  }
  return values;
}

}  // namespace at_moe
