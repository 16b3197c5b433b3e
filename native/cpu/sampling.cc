// Sampling of one token per row (contract: backend/ops/sampling.h).
//   s = (l - max l) / temperature, l the penalised logits, -inf if banned or not allowed;  weight_i = e^s_i
// Candidates are taken lazily in descending order: the ids are cut into bands by their distance from the largest score
// and only the bands that are reached are sorted, so that a draw over a large vocabulary rarely sorts more than a few
// hundred. Exactly top_k candidates stay, ties by lower index. Split over rows; a row is one worker's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>
#include <vector>

#include "core/rng.h"
#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/lanes.h"

namespace at_moe {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// scores = -inf for what is not among `allowed`.
void forbid(const uint32_t* allowed, int64_t n, float* scores) {
  for (int64_t first = 0; first < n; first += 32) {
    const uint32_t word = allowed[first / 32];
    const int64_t count = std::min<int64_t>(32, n - first);
    if (word == 0) {
      std::fill_n(scores + first, count, -kInfinity);
    } else if (~word != 0) {
      for (int64_t i = 0; i < count; ++i) {
        if ((word >> i & 1) == 0) scores[first + i] = -kInfinity;
      }
    }
  }
}

// scores = the row after repetition penalty, bans and the allowed set. Returns the largest.
float penalise(const SamplingRow& row, const float* logits, int64_t n, float* scores) {
  std::copy(logits, logits + n, scores);
  if (row.repetition_penalty != 1) {
    const std::unordered_set<int32_t> seen(row.history, row.history + row.history_length);
    for (const int32_t id : seen) {
      scores[id] = logits[id] < 0 ? logits[id] * row.repetition_penalty : logits[id] / row.repetition_penalty;
    }
  }
  for (int64_t i = 0; i < row.banned_length; ++i) scores[row.banned[i]] = -kInfinity;
  if (row.allowed) forbid(row.allowed, n, scores);
  return max_lanes(n, scores);
}

// Ids by descending score, ties by lower index; the largest score is 0.
class Descending {
 public:
  Descending(const float* scores, int64_t n) : scores_(scores), n_(n) {}

  // The id of rank `index`, or -1 past the last one with a finite score.
  int32_t at(size_t index) {
    while (index >= ids_.size()) {
      if (lower_ == -kInfinity) return -1;
      next_band();
    }
    return ids_[index];
  }

 private:
  void next_band() {
    const float upper = lower_;
    depth_ *= 2;
    lower_ = depth_ > kDeepest ? -kInfinity : -depth_;
    const auto first = static_cast<std::ptrdiff_t>(ids_.size());
    for (int64_t i = 0; i < n_; ++i) {
      const bool reached = scores_[i] < upper && scores_[i] >= lower_ && scores_[i] != -kInfinity;
      if (reached) ids_.push_back(static_cast<int32_t>(i));
    }
    std::sort(ids_.begin() + first, ids_.end(),
              [this](int32_t a, int32_t b) { return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b; });
  }

  static constexpr float kDeepest = 64;
  const float* scores_;
  int64_t n_;
  float lower_ = kInfinity, depth_ = 2;
  std::vector<int32_t> ids_;
};

int32_t draw(const SamplingRow& row, float* scores, int64_t n, float largest) {
  for (int64_t i = 0; i < n; ++i) scores[i] = (scores[i] - largest) / row.temperature;
  const auto weight = [=](int32_t id) { return static_cast<double>(fast_exp(scores[id])); };
  Descending order(scores, n);
  const size_t limit = row.top_k > 0 ? static_cast<size_t>(row.top_k) : std::numeric_limits<size_t>::max();
  double total = 0;
  if (row.top_k > 0) {
    for (size_t i = 0; i < limit && order.at(i) >= 0; ++i) total += weight(order.at(i));
  } else {
    total = sum_lanes(n, [=](int64_t i) { return fast_exp(scores[i]); });
  }

  size_t kept = limit;
  double mass = total;
  if (row.top_p < 1 || row.min_p > 0) {
    mass = 0;
    for (kept = 0; kept < limit && order.at(kept) >= 0; ++kept) {
      const double w = weight(order.at(kept));
      if (kept > 0 && (w < row.min_p || (row.top_p < 1 && mass >= row.top_p * total))) break;
      mass += w;
    }
  }
  const double target = uniform(philox(row.seed, 0, row.draw)[0]) * mass;
  double sum = 0;
  int32_t id = order.at(0);
  for (size_t i = 0; i < kept && sum <= target && order.at(i) >= 0 && weight(order.at(i)) > 0; ++i) {
    id = order.at(i);
    sum += weight(id);
  }
  return id;
}

}  // namespace

void CpuBackend::sample(const Sampling& args) {
  const int64_t n = args.logits.cols;
  require(static_cast<int64_t>(args.rows.size()) == args.logits.rows, "sampling: ", args.rows.size(), " options for ",
          args.logits.rows, " rows");
  pool_.run_ranges(args.logits.rows, 1, [&](int64_t r, int64_t, int worker) {
    const SamplingRow& row = args.rows[r];
    const float* logits = args.logits.row(r);
    float* scores = worker_scratch(worker, n);
    const float largest = penalise(row, logits, n, scores);
    const float raw_largest = max_lanes(n, logits);
    const double total = sum_lanes(n, [=](int64_t i) { return fast_exp(logits[i] - raw_largest); });
    if (!std::isfinite(largest) || std::isnan(total)) fail(Code::kNotFinite, "no finite logit to sample a token from");
    const int32_t id = row.temperature > 0 ? draw(row, scores, n, largest)
                                           : static_cast<int32_t>(std::find(scores, scores + n, largest) - scores);
    args.tokens[r] = id;
    if (args.log_probs) args.log_probs[r] = static_cast<float>(logits[id] - raw_largest - std::log(total));
  });
}

}  // namespace at_moe
