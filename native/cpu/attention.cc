// Attention over the paged pool (backend/ops/attention.h). A task is a block of rows of one sequence by one key head: the
// queries of its group of heads are the rows of two products over each run of keys, q·Kᵀ with pages of K as panels and
// P·V with 16 columns of V as panels. A run is reduced alone (maximum, sum, weighted values) and then blended into the
// row's result. Pages no row of the block sees are not touched; a key that one row does not see has weight exactly 0.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/kv.h"
#include "cpu/weight.h"

namespace at_moe {

using cpu::Kernels;
using cpu::ScoreRow;
using cpu::Tile;

namespace {

constexpr int64_t kQueryRows = 48;           // query rows times heads of a block
constexpr int64_t kScoreRow = kKeyRun + 16;  // off one set of the first-level cache
constexpr int64_t kDirectRows = 12;          // up to here V is read in place
constexpr int64_t kColumns = 4 * kPanel;     // of V that are gathered at once

struct RowBlock {
  int64_t begin = 0, end = 0;
};

std::vector<RowBlock> cut_rows(const RaggedRows& layout, int64_t most) {
  std::vector<RowBlock> blocks;
  for (int64_t n = 0; n < layout.rows; ++n) {
    if (!blocks.empty() && layout.sequence[n] == layout.sequence[blocks.back().begin] &&
        n - blocks.back().begin < most) {
      blocks.back().end = n + 1;
    } else {
      blocks.push_back({n, n + 1});
    }
  }
  return blocks;
}

// One block of rows and one key head.
class BlockAttention {
 public:
  BlockAttention(const Kernels& kernels, const AttentionForward& args, const RowBlock& rows, int64_t kv_head,
                 float* scratch)
      : kernels_(kernels),
        args_(args),
        kv_(static_cast<const CpuKvPool&>(*args.kv)),
        rows_(rows),
        kv_head_(kv_head),
        dim_(kv_.shape().head_dim),
        width_(kv_.value_stride()),
        group_(args.heads / kv_.shape().kv_heads),
        count_((rows.end - rows.begin) * group_),
        gathered_(scratch),
        scores_(gathered_ + kKeyRun * kColumns),
        q_(scores_ + count_ * kScoreRow),
        out_(q_ + count_ * width_),
        run_out_(out_ + count_ * width_),
        maximum_(run_out_ + count_ * width_),
        sum_(maximum_ + count_) {}

  static int64_t scratch_floats(int64_t rows, int64_t width) {
    return kKeyRun * kColumns + rows * (kScoreRow + 3 * width + 2);
  }

  void compute() {
    load_queries();
    const int64_t last = args_.layout.position[rows_.end - 1] + 1;
    for (int64_t run = first_key(rows_.begin) / kKeyRun; run * kKeyRun < last; ++run) add_run(run * kKeyRun, last);
    store();
  }

 private:
  int64_t row_of(int64_t r) const { return rows_.begin + r / group_; }
  int64_t column_of(int64_t r) const { return (kv_head_ * group_ + r % group_) * dim_; }
  int64_t first_key(int64_t row) const {
    return args_.window > 0 ? std::max<int64_t>(0, args_.layout.position[row] - args_.window + 1) : 0;
  }

  void load_queries() {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim_));
    for (int64_t r = 0; r < count_; ++r) {
      const float* q = args_.q.row(row_of(r)) + column_of(r);
      for (int64_t i = 0; i < dim_; ++i) q_[r * width_ + i] = q[i] * scale;
      sum_[r] = 0;
    }
    std::memset(out_, 0, sizeof(float) * static_cast<size_t>(count_ * width_));
  }

  // Keys of the run that starts at `run`, up to `last`.
  void add_run(int64_t run, int64_t last) {
    const int64_t begin = std::max(run, first_key(rows_.begin)), end = std::min(run + kKeyRun, last);
    const int64_t origin = begin / kPageTokens * kPageTokens;  // scores_ column 0
    const int64_t keys = (end - origin + kPageTokens - 1) / kPageTokens * kPageTokens;
    const int32_t* pages = args_.layout.page_table + args_.layout.sequence[rows_.begin] * args_.layout.page_stride;

    for (int64_t r = 0; r < count_; ++r)
      std::memset(scores_ + r * kScoreRow, 0, sizeof(float) * static_cast<size_t>(keys));
    add_scores(pages + origin / kPageTokens, keys / kPageTokens);
    ScoreRow reduced[kQueryRows];
    for (int64_t r = 0; r < count_; ++r) {
      const int64_t first = std::max(begin, first_key(row_of(r))) - origin;
      const int64_t visible = std::min<int64_t>(end, args_.layout.position[row_of(r)] + 1) - origin;
      reduced[r] = kernels_.softmax(scores_ + r * kScoreRow, keys, first, std::max(first, visible));
    }

    std::memset(run_out_, 0, sizeof(float) * static_cast<size_t>(count_ * width_));
    if (count_ > kDirectRows) {
      add_values_by_column(pages, begin, end, origin);
    } else {
      add_values_by_page(pages, begin, end, origin);
    }
    for (int64_t r = 0; r < count_; ++r) blend(r, reduced[r]);
  }

  // scores_ += q · Kᵀ over `count` pages.
  void add_scores(const int32_t* pages, int64_t count) {
    Tile scores;
    scores.rows = count_;
    scores.k = dim_;
    scores.a = q_;
    scores.a_row = width_;
    scores.acc_row = kScoreRow;
    const auto keys = [&](int64_t page) { return kv_.keys(args_.layer, pages[page], kv_head_); };
    for (int64_t page = 0; page < count; page += scores.panels) {
      scores.b = keys(page);
      scores.b_panel = page + 1 < count ? keys(page + 1) - scores.b : 0;
      scores.panels = 1;
      while (page + scores.panels < count && keys(page + scores.panels) == scores.b + scores.panels * scores.b_panel)
        ++scores.panels;
      scores.acc = scores_ + page * kPageTokens;
      kernels_.multiply(scores);
    }
  }

  // Few rows: V is read where it lies.
  void add_values_by_page(const int32_t* pages, int64_t begin, int64_t end, int64_t origin) {
    Tile values;
    values.rows = count_;
    values.panels = width_ / kPanel;
    values.a_row = kScoreRow;
    values.b_panel = kPanel;
    values.b_k = width_;
    values.acc = run_out_;
    values.acc_row = width_;
    for (int64_t page = origin; page < end; page += kPageTokens) {
      const int64_t from = std::max(page, begin);
      values.k = std::min(page + kPageTokens, end) - from;
      values.a = scores_ + (from - origin);
      values.b = page_values(pages, page) + (from - page) * width_;
      kernels_.multiply(values);
    }
  }

  // Many rows: some columns of the whole run are gathered first, and all rows pass over them.
  void add_values_by_column(const int32_t* pages, int64_t begin, int64_t end, int64_t origin) {
    Tile values;
    values.rows = count_;
    values.k = end - begin;
    values.a = scores_ + (begin - origin);
    values.a_row = kScoreRow;
    values.b = gathered_;
    values.b_panel = kPanel;
    values.acc_row = width_;
    for (int64_t column = 0; column < width_; column += kColumns) {
      const int64_t columns = std::min(kColumns, width_ - column);
      float* to = gathered_;
      for (int64_t page = origin; page < end; page += kPageTokens) {
        const float* from = page_values(pages, page) + column;
        const int64_t first = std::max(page, begin) - page, last = std::min(page + kPageTokens, end) - page;
        for (int64_t token = first; token < last; ++token, to += columns) {
          std::memcpy(to, from + token * width_, sizeof(float) * static_cast<size_t>(columns));
        }
      }
      values.panels = columns / kPanel;
      values.b_k = columns;
      values.acc = run_out_ + column;
      kernels_.multiply(values);
    }
  }

  const float* page_values(const int32_t* pages, int64_t key) const {
    return kv_.values(args_.layer, pages[key / kPageTokens], kv_head_);
  }

  void blend(int64_t r, const ScoreRow& run) {
    if (run.sum == 0) return;
    float keep = 0, take = 1;
    if (sum_[r] > 0) {
      const float top = std::max(maximum_[r], run.maximum);
      keep = std::exp(maximum_[r] - top);
      take = std::exp(run.maximum - top);
      maximum_[r] = top;
    } else {
      maximum_[r] = run.maximum;
    }
    sum_[r] = sum_[r] * keep + run.sum * take;
    kernels_.blend(out_ + r * width_, run_out_ + r * width_, width_, keep, take);
  }

  void store() {
    for (int64_t r = 0; r < count_; ++r) {
      float* out = args_.out.row(row_of(r)) + column_of(r);
      const float scale = 1.0f / sum_[r];
      for (int64_t i = 0; i < dim_; ++i) out[i] = out_[r * width_ + i] * scale;
      if (args_.lse) args_.lse.row(row_of(r))[kv_head_ * group_ + r % group_] = maximum_[r] + std::log(sum_[r]);
    }
  }

  const Kernels& kernels_;
  const AttentionForward& args_;
  const CpuKvPool& kv_;
  const RowBlock rows_;
  const int64_t kv_head_, dim_, width_, group_, count_;
  float *gathered_, *scores_, *q_, *out_, *run_out_, *maximum_, *sum_;
};

}  // namespace

void CpuBackend::forward(const AttentionForward& args) {
  const auto& kv = static_cast<const CpuKvPool&>(*args.kv);
  const int64_t kv_heads = kv.shape().kv_heads, group = args.heads / kv_heads;
  require(group > 0 && group <= kQueryRows && args.heads % kv_heads == 0, "attention: ", args.heads, " heads over ",
          kv_heads, " key heads");
  const std::vector<RowBlock> blocks = cut_rows(args.layout, kQueryRows / group);
  pool_.run(static_cast<int64_t>(blocks.size()) * kv_heads, [&](int64_t task, int worker) {
    float* scratch = worker_scratch(worker, BlockAttention::scratch_floats(kQueryRows, kv.value_stride()));
    BlockAttention(kernels_, args, blocks[static_cast<size_t>(task / kv_heads)], task % kv_heads, scratch).compute();
  });
}

}  // namespace at_moe
