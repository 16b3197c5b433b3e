#include "cuda/graphs.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "core/status.h"

namespace at_moe::cuda {

namespace {

bool graphs_of_environment() {
  const char* text = std::getenv("AT_MOE_CUDA_GRAPH");
  if (!text || !*text || std::string_view(text) == "on") return true;
  if (std::string_view(text) == "off") return false;
  fail(Code::kUnsupported, "AT_MOE_CUDA_GRAPH is '", text, "': on or off was expected");
}

bool same(const dim3& a, const dim3& b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

bool same(const StepLaunch& a, const StepLaunch& b) {
  return a.kernel == b.kernel && same(a.shape.grid, b.shape.grid) && same(a.shape.block, b.shape.block) &&
         a.shape.shared_bytes == b.shape.shared_bytes;
}

bool alike(const std::vector<StepLaunch>& a, const std::vector<StepLaunch>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const StepLaunch& one, const StepLaunch& other) { return same(one, other); });
}

}  // namespace

Graphs::Graphs(Runtime& runtime, DeviceWork& work)
    : runtime_(runtime), work_(work), enabled_(graphs_of_environment()) {}

const Graph* Graphs::find(const std::vector<StepLaunch>& launches, const std::function<void()>& enqueue) {
  if (!enabled_ || launches.size() < kFewest) return nullptr;
  const auto known =
      std::find_if(steps_.begin(), steps_.end(), [&](const Step& step) { return alike(step.launches, launches); });
  if (known == steps_.end()) {
    const auto older = [](const Step& a, const Step& b) { return a.used < b.used; };
    if (steps_.size() == kMost) steps_.erase(std::min_element(steps_.begin(), steps_.end(), older));
    steps_.push_back({launches, nullptr, false, ++clock_});
    return nullptr;
  }
  known->used = ++clock_;
  if (!known->captured) {
    known->captured = true;
    known->graph = runtime_.capture(enqueue);
    work_.captures += known->graph != nullptr;
  }
  work_.graphs += known->graph != nullptr;
  return known->graph.get();
}

}  // namespace at_moe::cuda
