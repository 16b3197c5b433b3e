#include "addon/ops_call.h"

namespace at_moe {

namespace {

void embedding_forward(OpCall& call) {
  const Matrix table = call.matrix(call.args(), "table", number_type(OpCall::storage_of(call.args())), true);
  const int64_t rows = call.integer("rows");
  call.backend().forward(EmbeddingForward{table.data, table.dtype, call.array<int32_t>("ids"),
                                          call.out("y", rows, table.cols, DType::f32)});
}

void embedding_backward(OpCall& call) {
  call.backend().backward(
      EmbeddingBackward{call.array<int32_t>("ids"), call.matrix("dy", DType::f32), call.update("dtable", DType::f32)});
}

// With `floats`, x is f32.
void rms_norm_forward(OpCall& call) {
  const Matrix x = call.matrix("x", call.stream());
  const Matrix y = call.flag("inPlace") ? x : call.out("y", x.rows, x.cols, call.activation());
  if (call.flag("inPlace")) call.keep("y", x);
  call.backend().forward(RmsNormForward{x, y, call.array<float>("gamma"), call.integer("dim", x.cols),
                                        static_cast<float>(call.number("eps"))});
}

// With `floats`, x, dy and dx are f32; with `floatX`, x alone.
void rms_norm_backward(OpCall& call) {
  RmsNormBackward args;
  args.x = call.matrix("x", call.flag("floatX") ? DType::f32 : call.stream());
  args.dy = call.matrix("dy", call.stream());
  args.accumulate = OpCall::has(call.args(), "dx");
  if (args.accumulate) {
    args.dx = call.update("dx", call.stream());
  } else if (call.flag("inPlace")) {
    args.dx = args.dy;
    call.keep("dx", args.dx);
  } else {
    args.dx = call.out("dx", args.x.rows, args.x.cols, call.stream());
  }
  args.gamma = call.array<float>("gamma");
  args.dgamma = call.update_array("dgamma");
  args.dim = call.integer("dim", args.x.cols);
  args.eps = static_cast<float>(call.number("eps"));
  call.backend().backward(args);
}

// In place; with `floats`, q and k go in as f32 and come out elsewhere.
void rope_forward(OpCall& call) {
  RopeForward args;
  if (call.flag("floats")) {
    args.q_in = call.matrix("q", DType::f32);
    args.k_in = call.matrix("k", DType::f32);
    args.q = call.out("q", args.q_in.rows, args.q_in.cols, call.activation());
    args.k = call.out("k", args.k_in.rows, args.k_in.cols, call.activation());
  } else {
    args.q = args.q_in = call.update("q", call.activation());
    args.k = args.k_in = call.update("k", call.activation());
  }
  args.v = call.matrix("v", call.activation());
  args.inv_freq = call.array<double>("invFreq");
  args.head_dim = call.integer("headDim");
  args.layout.rows = args.q.rows;
  args.layout.position = call.array<int32_t>("position");
  call.backend().forward(args);
}

void rope_backward(OpCall& call) {
  const Matrix dq = call.update("dq", call.activation()), dk = call.update("dk", call.activation());
  call.backend().backward(
      RopeBackward{dq, dk, call.array<double>("invFreq"), call.integer("headDim"), call.array<int32_t>("position")});
}

void swiglu_forward(OpCall& call) {
  const Matrix gate = call.matrix("gate", call.activation()), up = call.matrix("up", call.activation());
  call.backend().forward(SwigluForward{gate, up, call.out("y", gate.rows, gate.cols, call.activation())});
}

void swiglu_backward(OpCall& call) {
  const Matrix gate = call.matrix("gate", call.activation()), up = call.matrix("up", call.activation());
  Matrix dgate = gate, dup = up;
  if (call.flag("inPlace")) {
    call.keep("dgate", dgate);
    call.keep("dup", dup);
  } else {
    dgate = call.out("dgate", gate.rows, gate.cols, call.activation());
    dup = call.out("dup", gate.rows, gate.cols, call.activation());
  }
  call.backend().backward(SwigluBackward{gate, up, call.matrix("dy", call.activation()), dgate, dup});
}

// With `floats`, x is f32.
void dropout(OpCall& call) {
  Dropout args;
  args.x = call.matrix("x", call.stream());
  args.accumulate = OpCall::has(call.args(), "y");
  args.y = args.accumulate ? call.update("y", call.activation())
                           : call.out("y", args.x.rows, args.x.cols, call.activation());
  args.p = static_cast<float>(call.number("p"));
  args.seed = static_cast<uint64_t>(call.integer("seed"));
  args.stream = static_cast<uint64_t>(call.integer("stream"));
  args.first_row = call.integer("firstRow");
  call.backend().forward(args);
}

// Rows go through rope (k and v to the pool) and attention in the pieces that end at `cuts`.
void attention_forward(OpCall& call) {
  AttentionForward attention;
  attention.q = call.update("q", call.activation());
  attention.out = call.out("out", attention.q.rows, attention.q.cols, call.activation());
  attention.heads = call.integer("heads");
  if (call.flag("wantLse")) attention.lse = call.out("lse", attention.q.rows, attention.heads, DType::f32);
  attention.window = call.integer("window");
  attention.layer = call.integer("layer");

  RopeForward rope;
  const Matrix k = call.update("k", call.activation()), v = call.matrix("v", call.activation());
  rope.inv_freq = call.array<double>("invFreq");
  rope.head_dim = attention.q.cols / attention.heads;
  rope.layer = attention.layer;
  const KvPool::Shape shape{call.integer("layers", 1), call.integer("pages"), k.cols / rope.head_dim, rope.head_dim};
  const std::unique_ptr<KvPool> pool = call.backend().create_kv(shape);
  rope.kv = pool.get();
  attention.kv = pool.get();

  RaggedRows layout;
  layout.sequences = call.integer("sequences", 1);
  layout.position = call.array<int32_t>("position");
  layout.sequence = call.array<int32_t>("sequence");
  layout.page_table = call.array<int32_t>("pageTable");
  layout.page_stride = call.integer("pageStride");

  const Matrix q = attention.q, out = attention.out, lse = attention.lse;
  int64_t begin = 0;
  for (const int32_t end : OpCall::values<int32_t>(call.args(), "cuts")) {
    const int64_t count = end - begin;
    rope.q = rope.q_in = attention.q = q.row_range(begin, count);
    rope.k = rope.k_in = k.row_range(begin, count);
    rope.v = v.row_range(begin, count);
    attention.out = out.row_range(begin, count);
    if (lse) attention.lse = lse.row_range(begin, count);
    rope.layout = attention.layout = layout.row_range(begin, count);
    call.backend().forward(rope);
    call.backend().forward(attention);
    begin = end;
  }
  call.backend().synchronize();
}

void attention_backward(OpCall& call) {
  AttentionBackward args;
  args.q = call.matrix("q", call.activation());
  args.k = call.matrix("k", call.activation());
  args.v = call.matrix("v", call.activation());
  args.out = call.matrix("out", call.activation());
  args.dout = call.matrix("dout", call.activation());
  args.lse = call.matrix("lse", DType::f32);
  args.dq = call.out("dq", args.q.rows, args.q.cols, call.activation());
  args.dk = call.out("dk", args.k.rows, args.k.cols, call.activation());
  args.dv = call.out("dv", args.v.rows, args.v.cols, call.activation());
  args.heads = call.integer("heads");
  args.kv_heads = call.integer("kvHeads");
  args.head_dim = args.q.cols / args.heads;
  args.window = call.integer("window");
  int64_t begin = 0;
  for (const int32_t end : OpCall::values<int32_t>(call.args(), "sequenceEnds")) {
    args.begin = begin;
    args.end = end;
    call.backend().backward(args);
    begin = end;
  }
}

}  // namespace

std::vector<OpEntry> elementwise_ops() {
  return {{"embeddingForward", embedding_forward},
          {"embeddingBackward", embedding_backward},
          {"rmsNormForward", rms_norm_forward},
          {"rmsNormBackward", rms_norm_backward},
          {"ropeForward", rope_forward},
          {"ropeBackward", rope_backward},
          {"swigluForward", swiglu_forward},
          {"swigluBackward", swiglu_backward},
          {"dropout", dropout},
          {"attentionForward", attention_forward},
          {"attentionBackward", attention_backward}};
}

}  // namespace at_moe
