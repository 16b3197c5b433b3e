#include "engine/worker.h"

#include <algorithm>
#include <thread>

#include "backend/registry.h"
#include "core/status.h"
#include "engine/bench.h"
#include "engine/limits.h"
#include "engine/logits.h"
#include "engine/merge.h"
#include "engine/quantize.h"

namespace at_moe {

Worker::Worker(const EngineOptions& options, EventSink& sink, std::function<void()> wake)
    : options_(options), sink_(sink), wake_(std::move(wake)), lanes_(sink) {}

Worker::~Worker() = default;

Scheduler& Worker::scheduler() const {
  if (!scheduler_) fail(Code::kInternal, "no model is loaded");
  return *scheduler_;
}

std::shared_ptr<Mixture> Worker::mixture(int64_t number) const {
  const auto at = mixtures_.find(number);
  if (at == mixtures_.end()) fail(Code::kDisposed, "the mixture has been disposed");
  return at->second;
}

std::shared_ptr<SequenceRouting> Worker::routing(const RoutingRequest& request) const {
  if (request.kind == RoutingRequest::Kind::kBase) return SequenceRouting::base();
  std::shared_ptr<Mixture> of = mixture(request.mixture);
  const size_t groups = static_cast<size_t>(of->shape().groups), experts = static_cast<size_t>(of->shape().experts);
  if (request.kind == RoutingRequest::Kind::kFixed) {
    if (request.weights.size() != experts)
      fail(Code::kRouting, request.weights.size(), " weights for ", experts, " experts");
    return SequenceRouting::fixed(*backend_, std::move(of), request.weights, request.alone);
  }
  if (!of->has_router()) fail(Code::kRouting, "the mixture has no router: expert weights must be given");
  const RouterControls& controls = request.controls;
  auto fits = [](const auto& values, size_t count) { return values.empty() || values.size() == count; };
  if (!fits(controls.group_bias, groups) || !fits(controls.group_denied, groups) || !fits(controls.group_set, groups) ||
      !fits(controls.expert_bias, experts) || !fits(controls.expert_denied, experts) ||
      !fits(controls.expert_set, experts)) {
    fail(Code::kRouting, "routing controls do not fit ", groups, " groups and ", experts, " experts");
  }
  const RouterOptions options = request.options.value_or(of->source().options);
  std::shared_ptr<SequenceRouting> routed = SequenceRouting::routed(*backend_, std::move(of), options, controls);
  routed->selection = request.selection;
  return routed;
}

Pass Worker::load(int64_t job, LoadRequest request, JobResult& result) {
  if (model_) fail(Code::kBusy, "the engine has a model already");
  const Storage weights = request.options.weights;
  const DType activation = is_blocks(weights) ? DType::bf16 : number_type(weights);
  backend_ = create_backend(options_.device,
                            {.threads = options_.threads, .affinity = options_.affinity, .activation = activation});
  const std::optional<Storage> experts = request.options.expert_weights;
  if (experts && is_blocks(*experts) && !backend_->takes_stacks_of_blocks())
    fail(Code::kUnsupported, "experts of 8 bits are for the CPU, not for ", backend_->name());
  backend_->begin_step();
  working_ = true;
  auto model = std::make_unique<Model>(*backend_, request.config, weights, request.options.trainable);
  if (request.random_seed) {
    co_await model->load_random(*request.random_seed);
  } else {
    co_await model->load(std::move(request.tensors), std::move(request.packed), [this, job](size_t done, size_t total) {
      sink_.push(ProgressEvent{job, done, total});
    });
  }
  const Limits limits = plan_limits(*backend_, request.config, request.options);
  auto make_routing = [this](const RoutingRequest& of) { return routing(of); };
  residency_ = std::make_unique<Residency>(*backend_, request.options.adapter_bytes, wake_);
  scheduler_ = std::make_unique<Scheduler>(*model, limits, make_routing, *residency_, sink_);
  model_ = std::move(model);
  expert_weights_ = experts;
  result = ModelInfo{backend_->name(), model_->storage(), expert_weights_,           limits.context_length,
                     limits.kv_tokens, limits.max_batch,  model_->mapped_bytes() > 0};
}

Pass Worker::create_mixture(MixtureSource source, int64_t replaced, JobResult& result) {
  scheduler();
  source.storage = expert_weights_;
  auto made = std::make_shared<Mixture>(*backend_, model_->config().layer_shapes(), std::move(source));
  const auto at = mixtures_.find(replaced);
  Pass added = residency_->add(made, at == mixtures_.end() ? nullptr : at->second);
  co_await added;
  mixtures_[++last_mixture_] = made;
  result = MixtureInfo{last_mixture_, made->weights_bytes(), made->shape().width()};
}

Pass Worker::pin_mixture(int64_t number, JobResult& result) {
  Residency::Hold pin;
  Pass pinned = residency_->pin(mixture(number), pin);
  co_await pinned;
  mixture(number);  // may have been released since
  pins_[number] = std::move(pin);
  result = std::monostate();
}

// Holds the mixture of a request for a job.
Pass Worker::hold(const RoutingRequest& request, Residency::Hold& hold) {
  if (request.kind == RoutingRequest::Kind::kBase) co_return;
  Pass acquired = residency_->acquire(mixture(request.mixture), hold);
  co_await acquired;
}

Pass Worker::read_mixture(int64_t number, std::string prefix, JobResult& result) {
  const std::shared_ptr<Mixture> of = mixture(number);
  std::vector<NamedValues> tensors;
  for (const ParameterSlice& slice : of->slices()) {
    if (!slice.name.starts_with(prefix)) continue;
    tensors.push_back({slice.name, {slice.rows, slice.cols}, of->read(slice)});
    co_await unit_end();
  }
  result = std::move(tensors);
}

Pass Worker::begin_training(int64_t number, TrainOptions options, JobResult& result) {
  scheduler();
  std::shared_ptr<Mixture> of = number ? mixture(number) : nullptr;
  Residency::Hold pin;
  if (of) {
    Pass pinned = residency_->pin(of, pin);
    co_await pinned;
    Residency::Hold hold;
    Pass acquired = residency_->acquire(of, hold);
    co_await acquired;
    const auto both = std::make_shared<std::pair<Residency::Hold, Residency::Hold>>(std::move(pin), std::move(hold));
    pin = Residency::Hold(both, of.get());
  }
  result = TrainerInfo{trainers_.begin(*model_, std::move(of), options, std::move(pin))};
}

Pass Worker::load_vocabulary(std::shared_ptr<Vocabulary> vocabulary, JobResult& result) {
  scheduler();
  const auto expected = static_cast<size_t>(model_->config().vocab_size);
  require(vocabulary->size() == expected, "a vocabulary of ", vocabulary->size(), " tokens, not ", expected);
  co_await vocabulary->prepare();
  constraints_.set_vocabulary(std::move(vocabulary));
  result = std::monostate();
}

Pass Worker::merged(MergeRequest request, JobResult& result) {
  scheduler();
  const std::shared_ptr<Mixture> of = mixture(request.mixture);
  if (request.layer < 0 || request.layer >= of->layers())
    fail(Code::kMismatch, "the base has no layer ", request.layer);
  Backend* on = backend_.get();
  if (on->name() != "cpu") {
    if (!merge_backend_) merge_backend_ = create_backend("cpu", {.threads = options_.threads});
    on = merge_backend_.get();
  }
  result = merge(*on, *of, request);
  co_return;
}

Pass Worker::quantize(TensorSource source, JobResult& result) {
  QuantizedTensor made;
  co_await quantize_tensor(std::move(source), made);
  result = std::move(made);
}

Pass Worker::packed_sections(JobResult& result) {
  scheduler();
  PackedSections sections;
  for (const auto& [name, bytes] : model_->packed_weights()) {
    if (bytes.empty()) fail(Code::kUnsupported, "packed weights of the device ", backend_->name(), " cannot be read");
    sections.sizes[name] = static_cast<double>(bytes.size());
  }
  result = std::move(sections);
  co_return;
}

Pass Worker::packed_section(std::string name, JobResult& result) {
  scheduler();
  const std::map<std::string, std::span<const uint8_t>> all = model_->packed_weights();
  const auto at = all.find(name);
  if (at == all.end()) fail(Code::kMismatch, "the model has no packed weight ", name);
  result = std::vector<uint8_t>(at->second.begin(), at->second.end());
  co_return;
}

Pass Worker::memory(JobResult& result) {
  MemoryStatement statement;
  if (model_) {
    statement.model = model_->device_bytes();
    statement.mapped = model_->mapped_bytes();
    statement.kv = backend_->kv_bytes(scheduler_->pool().shape());
    statement.workspaces = scheduler_->workspace_bytes();
    statement.kv_free_tokens = scheduler_->pages().free_tokens();
    statement.kv_tokens = scheduler_->limits().kv_tokens;
  }
  for (const auto& [number, of] : mixtures_) statement.mixtures += of->device_bytes();
  statement.trainers = trainers_.device_bytes();
  result = statement;
  co_return;
}

Pass Worker::logits(ScoreRequest request, JobResult& result) {
  Scheduler& on = scheduler();
  std::vector<float> values;
  Residency::Hold held;
  Pass holding = hold(request.routing, held);
  co_await holding;
  co_await sequence_logits(*model_, on, request, routing(request.routing), values);
  result = std::move(values);
}

Pass Worker::bench(BenchRequest request, JobResult& result) {
  BenchResult times;
  std::vector<Residency::Hold> held(request.routings.size());
  for (size_t i = 0; i < held.size(); ++i) {
    Pass holding = hold(request.routings[i], held[i]);
    co_await holding;
  }
  const auto make_routing = [this, &request](size_t i) { return routing(request.routings[i]); };
  // Not in one expression: GCC 12 destroys the arguments of an awaited call twice.
  Pass steps = time_steps(*model_, scheduler(), request, make_routing, times);
  co_await steps;
  result = std::move(times);
}

int Worker::rest_for_probe() {
  rest();  // else the probe's threads would have to share the processors with the engine's
  return options_.threads ? options_.threads : static_cast<int>(std::thread::hardware_concurrency());
}

Pass Worker::probe(JobResult& result) {
  const int threads = rest_for_probe();
  result = measure_rates(threads, model_ ? model_->storage() : Storage::f32);
  co_return;
}

Pass Worker::copy_files(std::vector<std::string> files, JobResult& result) {
  const int threads = rest_for_probe();
  result = at_moe::copy_files(threads, files);
  co_return;
}

void Worker::generate(const std::vector<GenerateRequest>& requests) {
  int64_t sequences = 0;
  for (const GenerateRequest& request : requests) sequences += request.n;
  try {
    scheduler().check_queue(static_cast<int64_t>(requests.size()), sequences);
  } catch (...) {
    const Failure failure = failure_of(std::current_exception());
    for (const GenerateRequest& request : requests) refuse(sink_, request, failure);
    return;
  }
  for (const GenerateRequest& request : requests) begin(request);
}

void Worker::begin(const GenerateRequest& request) {
  try {
    scheduler().add(request, request.grammar ? constraints_.at(*request.grammar) : nullptr);
  } catch (...) {
    refuse(sink_, request, failure_of(std::current_exception()));
  }
}

void Worker::score(ScoreRequest request) {
  const int64_t job = request.job;
  try {
    scheduler().add(std::move(request));
  } catch (...) {
    sink_.push(JobDone{job, failure_of(std::current_exception())});
  }
}

void Worker::cancel_sequence(int64_t sequence) {
  if (scheduler_) scheduler_->cancel(sequence);
}

void Worker::read_tokens(int64_t sequence, int64_t tokens) {
  if (scheduler_) scheduler_->read_tokens(sequence, tokens);
}

void Worker::cancel_job(int64_t job) {
  lanes_.cancel(job);
  if (scheduler_) scheduler_->cancel_score(job);
}

void Worker::release_mixture(int64_t number) {
  const auto at = mixtures_.find(number);
  if (at == mixtures_.end()) return;
  if (scheduler_) scheduler_->forget(at->second);
  mixtures_.erase(at);
  pins_.erase(number);
}

void Worker::release_session(int64_t session) {
  if (scheduler_) scheduler_->release_session(session);
}

Scheduling::Clock::time_point Worker::next_deadline() const {
  return scheduler_ ? scheduler_->next_deadline() : Scheduling::Clock::time_point::max();
}

bool Worker::idle() const {
  const size_t waiting = residency_ ? residency_->waiting_jobs() : 0;
  return !(residency_ && residency_->changed()) && lanes_.size() <= waiting && (!scheduler_ || scheduler_->idle());
}

EngineStats Worker::stats() const { return scheduler_ ? scheduler_->stats() : EngineStats{}; }

void Worker::step() {
  if (backend_ && !working_) {
    backend_->begin_step();
    working_ = true;
  }
  if (residency_) residency_->collect();
  if (scheduler_) scheduler_->step();
  lanes_.step();
  // A device runs behind the calls: what is enqueued must not grow beyond a unit while others wait for their step.
  if (scheduler_ && scheduler_->decoding()) backend_->synchronize();
}

void Worker::rest() {
  if (backend_ && working_) backend_->end_step();
  working_ = false;
}

void Worker::reject_all(const Failure& failure) {
  lanes_.reject_all(failure);
  if (scheduler_) scheduler_->reject_all(failure);
}

}  // namespace at_moe
