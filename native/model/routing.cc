#include "model/routing.h"

namespace at_moe {

std::shared_ptr<SequenceRouting> SequenceRouting::base() { return std::make_shared<SequenceRouting>(); }

std::shared_ptr<SequenceRouting> SequenceRouting::routed(Backend& backend, std::shared_ptr<Mixture> mixture,
                                                         RouterOptions options, RouterControls controls) {
  auto routing = std::make_shared<SequenceRouting>();
  routing->mode = mixture->source().scope == RoutingScope::kToken ? Mode::kToken : Mode::kPool;
  routing->options = options;
  routing->controls = std::move(controls);
  if (routing->mode == Mode::kPool) {
    const size_t values = static_cast<size_t>(mixture->layers()) * static_cast<size_t>(mixture->shape().width());
    routing->records = backend.allocate(values * sizeof(float));
  }
  routing->mixture = std::move(mixture);
  return routing;
}

std::shared_ptr<SequenceRouting> SequenceRouting::fixed(Backend& backend, std::shared_ptr<Mixture> mixture,
                                                        const std::vector<float>& expert_weights, bool alone) {
  auto routing = std::make_shared<SequenceRouting>();
  routing->mode = Mode::kFixed;
  std::vector<float> records;
  for (int layer = 0; layer < mixture->layers(); ++layer) {
    const std::vector<float> record = mixture->explicit_record(layer, expert_weights, alone);
    records.insert(records.end(), record.begin(), record.end());
  }
  routing->records = backend.allocate(records.size() * sizeof(float));
  backend.upload(routing->records.as<void>(), records.data(), records.size() * sizeof(float));
  routing->mixture = std::move(mixture);
  return routing;
}

}  // namespace at_moe
