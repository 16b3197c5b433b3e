// Backward of attention over the rows of one sequence (backend/ops/attention.h), flash style: P is recomputed from lse. A
// task is one key head with its group of query heads. For each block of keys all blocks of query rows that see it pass by
// in order: S = q·Kᵀ, dP = dout·Vᵀ, then dv += Pᵀ dout, dk += dSᵀ q, dq += dS K; every sum has one owner and one order.
// q is scaled by 1/sqrt(D) as it is copied, so that dk needs no scale and dq gets it at the end.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/weight.h"

namespace at_moe {

using cpu::Kernels;
using cpu::Tile;

namespace {

constexpr int64_t kKeys = 128;             // of a block
constexpr int64_t kScoreRow = kKeys + 16;  // off one set of the first-level cache
constexpr int64_t kQueryRows = 64;         // query rows times heads of a block, at least one query row

int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

class HeadBackward {
 public:
  HeadBackward(const Kernels& kernels, const AttentionBackward& args, int64_t kv_head)
      : kernels_(kernels),
        args_(args),
        kv_head_(kv_head),
        tokens_(args.end - args.begin),
        group_(args.heads / args.kv_heads),
        dim_(args.head_dim),
        width_(padded(dim_)),
        rows_(tokens_ * group_),
        step_(std::max<int64_t>(1, kQueryRows / group_)) {}

  int64_t scratch_floats() const {
    return 3 * rows_ * width_ + padded(tokens_) * (width_ + 2 * dim_) + 2 * step_ * group_ * kScoreRow +
           2 * kKeys * width_ + rows_;
  }

  void compute(float* scratch) {
    const auto take = [&scratch](int64_t floats) { return std::exchange(scratch, scratch + floats); };
    q_ = take(rows_ * width_);
    dout_ = take(rows_ * width_);
    dq_ = take(rows_ * width_);
    k_ = take(padded(tokens_) * width_);
    k_panels_ = take(padded(tokens_) * dim_);
    v_panels_ = take(padded(tokens_) * dim_);
    p_ = take(step_ * group_ * kScoreRow);
    ds_ = take(step_ * group_ * kScoreRow);
    dk_ = take(kKeys * width_);
    dv_ = take(kKeys * width_);
    delta_ = take(rows_);
    load();
    for (int64_t key = 0; key < tokens_; key += kKeys) add_keys(key, std::min(key + kKeys, tokens_));
    store_rows(dq_, args_.dq, 0, tokens_, group_, 1.0f / std::sqrt(static_cast<float>(dim_)));
  }

 private:
  int64_t column(int64_t head) const { return (kv_head_ * group_ + head) * dim_; }
  int64_t first_key(int64_t token) const {
    return args_.window > 0 ? std::max<int64_t>(0, token - args_.window + 1) : 0;
  }

  void load() {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim_));
    std::memset(q_, 0, sizeof(float) * static_cast<size_t>(3 * rows_ * width_));
    std::memset(k_, 0, sizeof(float) * static_cast<size_t>(padded(tokens_) * (width_ + 2 * dim_)));
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t n = args_.begin + r / group_, head = r % group_;
      const float* q = args_.q.row(n) + column(head);
      const float* dout = args_.dout.row(n) + column(head);
      for (int64_t i = 0; i < dim_; ++i) q_[r * width_ + i] = q[i] * scale;
      std::memcpy(dout_ + r * width_, dout, sizeof(float) * static_cast<size_t>(dim_));
      delta_[r] = kernels_.dot(dout, args_.out.row(n) + column(head), dim_);
    }
    for (int64_t n = 0; n < tokens_; ++n) {
      const float* k = args_.k.row(args_.begin + n) + kv_head_ * dim_;
      std::memcpy(k_ + n * width_, k, sizeof(float) * static_cast<size_t>(dim_));
    }
    into_panels(args_.k, k_panels_);
    into_panels(args_.v, v_panels_);
  }

  // The head's columns of all tokens as panels [dim][16 tokens].
  void into_panels(const Matrix& from, float* panels) const {
    for (int64_t n = 0; n < tokens_; n += kPanel, panels += kPanel * dim_) {
      const float* rows = from.row(args_.begin + n) + kv_head_ * dim_;
      const int64_t count = std::min(kPanel, tokens_ - n), whole = count == kPanel ? dim_ / kPanel * kPanel : 0;
      for (int64_t i = 0; i < whole; i += kPanel)
        kernels_.transpose(rows + i, from.stride, panels + i * kPanel, kPanel);
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t i = whole; i < dim_; ++i) panels[i * kPanel + row] = rows[row * from.stride + i];
      }
    }
  }

  void add_keys(int64_t key, int64_t key_end) {
    std::memset(dk_, 0, sizeof(float) * static_cast<size_t>(kKeys * width_));
    std::memset(dv_, 0, sizeof(float) * static_cast<size_t>(kKeys * width_));
    for (int64_t token = key / step_ * step_; token < tokens_; token += step_) {
      const int64_t token_end = std::min(token + step_, tokens_);
      if (first_key(token) >= key_end) break;
      add_block(key, key_end, token, token_end);
    }
    store_rows(dk_, args_.dk, key, key_end, 1, 1);
    store_rows(dv_, args_.dv, key, key_end, 1, 1);
  }

  void add_block(int64_t key, int64_t key_end, int64_t token, int64_t token_end) {
    const int64_t first = token * group_, rows = (token_end - token) * group_, keys = key_end - key;
    scores(q_ + first * width_, k_panels_ + key * dim_, rows, keys, p_);
    scores(dout_ + first * width_, v_panels_ + key * dim_, rows, keys, ds_);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = token + r / group_;
      const int64_t from = std::max(first_key(n), key) - key, to = std::min(n + 1, key_end) - key;
      const float lse = args_.lse.row(args_.begin + n)[kv_head_ * group_ + r % group_];
      kernels_.softmax_backward(p_ + r * kScoreRow, ds_ + r * kScoreRow, padded(keys), from, std::max(from, to), lse,
                                delta_[first + r]);
    }
    product(keys, rows, p_, 1, kScoreRow, dout_ + first * width_, dv_);
    product(keys, rows, ds_, 1, kScoreRow, q_ + first * width_, dk_);
    product(rows, keys, ds_, kScoreRow, 1, k_ + key * width_, dq_ + first * width_);
  }

  // out [rows, keys] = a [rows, dim] · panels of keys
  void scores(const float* a, const float* panels, int64_t rows, int64_t keys, float* out) const {
    std::memset(out, 0, sizeof(float) * static_cast<size_t>(rows * kScoreRow));
    Tile tile;
    tile.rows = rows;
    tile.panels = padded(keys) / kPanel;
    tile.k = dim_;
    tile.a = a;
    tile.a_row = width_;
    tile.b = panels;
    tile.b_panel = kPanel * dim_;
    tile.acc = out;
    tile.acc_row = kScoreRow;
    kernels_.multiply(tile);
  }

  // out [rows, width] += a [rows, k] · b [k, width]
  void product(int64_t rows, int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b, float* out) const {
    Tile tile;
    tile.rows = rows;
    tile.panels = width_ / kPanel;
    tile.k = k;
    tile.a = a;
    tile.a_row = a_row;
    tile.a_k = a_k;
    tile.b = b;
    tile.b_panel = kPanel;
    tile.b_k = width_;
    tile.acc = out;
    tile.acc_row = width_;
    kernels_.multiply(tile);
  }

  // Rows of tokens [begin, end), `heads` of them per token, times `scale`.
  void store_rows(const float* from, const Matrix& to, int64_t begin, int64_t end, int64_t heads, float scale) const {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t head = 0; head < heads; ++head, from += width_) {
        float* out = to.row(args_.begin + n) + (kv_head_ * heads + head) * dim_;
        for (int64_t i = 0; i < dim_; ++i) out[i] = from[i] * scale;
      }
    }
  }

  const Kernels& kernels_;
  const AttentionBackward& args_;
  const int64_t kv_head_, tokens_, group_, dim_, width_, rows_, step_;
  float *q_ = nullptr, *dout_ = nullptr, *dq_ = nullptr, *k_ = nullptr, *k_panels_ = nullptr, *v_panels_ = nullptr;
  float *p_ = nullptr, *ds_ = nullptr, *dk_ = nullptr, *dv_ = nullptr, *delta_ = nullptr;
};

}  // namespace

void CpuBackend::backward(const AttentionBackward& args) {
  require(args.kv_heads > 0 && args.heads % args.kv_heads == 0, "attention: ", args.heads, " heads over ",
          args.kv_heads, " key heads");
  if (args.begin >= args.end) return;
  pool_.run(args.kv_heads, [&](int64_t kv_head, int worker) {
    HeadBackward head(kernels_, args, kv_head);
    head.compute(worker_scratch(worker, head.scratch_floats()));
  });
}

}  // namespace at_moe
