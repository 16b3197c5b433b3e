// The sum over the ranks r of all experts is a weight gradient with one row per rank: dW += gᵀ x with x_r = A[r, :]
// and g_r = gate scale B[:, r]; dW starts as W.
#include "engine/merge.h"

#include "core/status.h"

namespace at_moe {

namespace {

struct Factors {
  std::vector<float> a;  // [ranks, d_in]
  std::vector<float> b;  // [ranks, d_out], gated and scaled
  int64_t ranks = 0;
};

void add(Factors& factors, const LoraSource& lora, const std::vector<float>& a, const std::vector<float>& b,
         float gate) {
  factors.a.insert(factors.a.end(), a.begin(), a.end());
  const size_t rank = static_cast<size_t>(lora.rank), outputs = b.size() / rank;
  for (size_t r = 0; r < rank; ++r) {
    for (size_t row = 0; row < outputs; ++row) factors.b.push_back(gate * lora.scaling * b[row * rank + r]);
  }
  factors.ranks += lora.rank;
}

const ParameterSlice& slice_named(const Mixture& mixture, const std::string& name) {
  for (const ParameterSlice& slice : mixture.slices()) {
    if (slice.name == name) return slice;
  }
  fail(Code::kInternal, "the mixture has no tensor ", name);
}

Factors collect(const Mixture& mixture, const MergeRequest& request) {
  const std::vector<float> record = mixture.explicit_record(request.layer, request.weights, request.alone);
  const RouterShape& shape = mixture.shape();
  Factors factors;
  auto add_adapter = [&](const AdapterSource& adapter, const std::string& prefix, int32_t column) {
    const float gate = record[static_cast<size_t>(shape.gate() + column)];
    if (gate == 0) return;
    for (const LoraSource& lora : adapter.modules) {
      if (lora.layer != request.layer || lora.module != request.module) continue;
      const std::string name = concat(prefix, "layers.", lora.layer, ".", module_name(lora.module));
      add(factors, lora, mixture.read(slice_named(mixture, name + ".lora_A")),
          mixture.read(slice_named(mixture, name + ".lora_B")), gate);
    }
  };
  for (int32_t expert = 0; expert < shape.experts; ++expert) {
    add_adapter(mixture.source().experts[static_cast<size_t>(expert)], concat("experts.", expert, "."), expert);
  }
  if (mixture.has_general()) add_adapter(*mixture.source().general, "general.", shape.experts);
  return factors;
}

}  // namespace

std::vector<float> merge(Backend& backend, const Mixture& mixture, const MergeRequest& request) {
  if (static_cast<int32_t>(request.weights.size()) != mixture.shape().experts) {
    fail(Code::kRouting, request.weights.size(), " weights for ", mixture.shape().experts, " experts");
  }
  std::vector<float> values = widen(request.base);
  const Factors factors = collect(mixture, request);
  if (factors.ranks == 0) return values;
  const int64_t outputs = request.base.shape.at(0), inputs = request.base.shape.at(1);
  if (static_cast<int64_t>(factors.a.size()) != factors.ranks * inputs ||
      static_cast<int64_t>(factors.b.size()) != factors.ranks * outputs) {
    fail(Code::kMismatch, "tensor ", request.base.name, " of [", outputs, ", ", inputs,
         "] does not fit the adapters of its module");
  }
  auto send = [&](const std::vector<float>& from) {
    Buffer buffer = backend.allocate(from.size() * sizeof(float));
    backend.upload(buffer.as<void>(), from.data(), from.size() * sizeof(float));
    return buffer;
  };
  const Buffer a = send(factors.a), b = send(factors.b), weight = send(values);
  const std::unique_ptr<Weight> shape_only = backend.create_weight(outputs, inputs, Storage::f32);
  const LinearModule module{shape_only.get(), nullptr, matrix(b.as<void>(), factors.ranks, outputs)};
  const LinearGradients gradient{weight.as<float>(), nullptr};
  LinearBackward args;
  args.x = args.shrink_x = matrix(a.as<void>(), factors.ranks, inputs);
  args.modules = std::span(&module, 1);
  args.gradients = std::span(&gradient, 1);
  backend.backward(args);
  backend.synchronize();
  backend.download(values.data(), weight.as<void>(), values.size() * sizeof(float));
  return values;
}

}  // namespace at_moe
