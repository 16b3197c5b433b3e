#include "addon/ops_call.h"
#include "backend/segments.h"

namespace at_moe {

namespace {

// Arguments that forward and backward share:
//   modules [{weight, dtype?, bias?}], stacks [{a?, dtype?, gateColumn, scale, selective?, modules: [{b?, dtype?, first}]}],
//   segments [{begin, end, stack}] (stack -1: base only), routing?
struct LinearGroup {
  std::vector<LinearModule> modules;
  std::vector<AdapterStack> stacks;
  std::vector<AdapterSegment> segments;
  std::vector<int64_t> stack_of;  // per segment
  int64_t rank = 0;

  explicit LinearGroup(OpCall& call) {
    for (const Napi::Object& source : OpCall::list(call.args(), "modules")) {
      modules.push_back({call.weight(source, "weight"), call.array<float>(source, "bias"), {}});
    }
    for (const Napi::Object& source : OpCall::list(call.args(), "stacks")) {
      AdapterStack stack;
      stack.a = call.weight(source, "a");
      stack.gate_column = call.array<int32_t>(source, "gateColumn");
      stack.scale = call.array<float>(source, "scale");
      stack.blocks = gate_blocks(OpCall::values<int32_t>(source, "gateColumn"));
      stack.selective = OpCall::flag(source, "selective");
      for (const Napi::Object& module : OpCall::list(source, "modules")) {
        stack.modules.push_back({call.weight(module, "b"), OpCall::integer(module, "first")});
      }
      if (stack.a) rank = std::max(rank, stack.a->rows());
      stacks.push_back(std::move(stack));
    }
    for (const Napi::Object& source : OpCall::list(call.args(), "segments")) {
      const int64_t index = OpCall::integer(source, "stack", -1);
      segments.push_back({OpCall::integer(source, "begin"), OpCall::integer(source, "end"),
                          index < 0 ? nullptr : &stacks.at(static_cast<size_t>(index))});
      stack_of.push_back(index);
    }
  }
};

std::string indexed(const char* name, size_t index) { return name + std::to_string(index); }

// y0, y1, … and h, hg; with `floats`, y and residual are f32 whatever the activations are.
void linear_forward(OpCall& call) {
  LinearGroup group(call);
  LinearForward args;
  args.x = call.matrix("x", call.activation());
  args.shrink_x = call.matrix("shrinkX", call.activation());
  for (size_t m = 0; m < group.modules.size(); ++m) {
    LinearModule& module = group.modules[m];
    if (call.flag("residualInPlace")) {
      module.y = call.matrix("residual", call.stream());
      call.keep(indexed("y", m), module.y);
      args.residual = module.y;
    } else {
      module.y = call.out(indexed("y", m), args.x.rows, module.weight->rows(), call.stream());
    }
  }
  if (!args.residual) args.residual = call.matrix("residual", call.stream());
  args.modules = group.modules;
  args.segments = group.segments;
  args.routing = call.matrix("routing", DType::f32);
  if (group.rank > 0) {
    if (call.flag("keepH", true)) args.h = call.out("h", args.x.rows, group.rank, DType::f32);
    args.hg = call.out("hg", args.x.rows, group.rank, DType::f32);
  }
  call.backend().forward(args);
}

// modules[m].dy, h, hg; `want` names the gradients: weight, bias, a, b. Outputs dx, shrinkDx, drouting, dweight<m>,
// dbias<m>, da<stack>, db<stack>_<m>, all added to zeros (drouting and dx to the arguments of that name, if given). With
// `floats`, dy, dx, shrinkDx are f32; with `floatX`, x too.
void linear_backward(OpCall& call) {
  LinearGroup group(call);
  LinearBackward args;
  args.x = call.matrix("x", call.flag("floatX") ? DType::f32 : call.activation());
  args.shrink_x = call.matrix("shrinkX", call.activation());
  args.h = call.matrix("h", DType::f32);
  args.hg = call.matrix("hg", DType::f32);
  args.routing = call.matrix("routing", DType::f32);
  const std::vector<Napi::Object> sources = OpCall::list(call.args(), "modules");
  std::vector<LinearGradients> gradients;
  const auto zeros = [&](const std::string& name, int64_t rows, int64_t cols) {
    const Matrix value = matrix(call.out_array(name, rows * cols), rows, cols);
    call.backend().zero(value.data, static_cast<size_t>(rows * cols) * sizeof(float));
    return static_cast<float*>(value.data);
  };
  for (size_t m = 0; m < group.modules.size(); ++m) {
    LinearModule& module = group.modules[m];
    module.y = call.matrix(sources[m], "dy", call.stream());
    LinearGradients gradient;
    if (call.flag("wantWeight")) gradient.weight = zeros(indexed("dweight", m), module.weight->rows(), args.x.cols);
    if (call.flag("wantBias")) gradient.bias = zeros(indexed("dbias", m), 1, module.weight->rows());
    gradients.push_back(gradient);
  }
  std::vector<AdapterGradients> of_stack;
  for (size_t s = 0; s < group.stacks.size(); ++s) {
    const AdapterStack& stack = group.stacks[s];
    AdapterGradients gradient;
    const bool want = call.flag("wantAdapters");
    if (want && stack.a) gradient.a = zeros(indexed("da", s), stack.a->rows(), stack.a->cols());
    for (size_t m = 0; m < stack.modules.size(); ++m) {
      const Weight* b = stack.modules[m].b;
      const std::string name = indexed("db", s) + "_" + std::to_string(m);
      gradient.b.push_back(want && b ? zeros(name, b->rows(), b->cols()) : nullptr);
    }
    of_stack.push_back(std::move(gradient));
  }
  std::vector<AdapterGradients> adapter_gradients;
  for (const int64_t stack : group.stack_of) {
    adapter_gradients.push_back(stack < 0 ? AdapterGradients{} : of_stack[static_cast<size_t>(stack)]);
  }

  args.modules = group.modules;
  args.segments = group.segments;
  args.accumulate_dx = OpCall::has(call.args(), "dx");
  if (args.accumulate_dx) {
    args.dx = call.update("dx", call.stream());
  } else if (call.flag("wantDx", true)) {
    args.dx = call.out("dx", args.x.rows, args.x.cols, call.stream());
  }
  if (args.shrink_x) args.shrink_dx = call.out("shrinkDx", args.x.rows, args.x.cols, call.stream());
  if (group.rank > 0) args.dh = call.out("dh", args.x.rows, group.rank, DType::f32);
  args.drouting = call.update("drouting", DType::f32);
  if (call.flag("wantWeight") || call.flag("wantBias")) args.gradients = gradients;
  if (call.flag("wantAdapters")) args.adapter_gradients = adapter_gradients;
  call.backend().backward(args);
}

}  // namespace

std::vector<OpEntry> linear_ops() { return {{"linearForward", linear_forward}, {"linearBackward", linear_backward}}; }

}  // namespace at_moe
