// Sampling of one token per row (contract: backend/ops/sampling.h).
//   s_i = (l_i - max l) / temperature <= 0, l the penalised logits, -inf if banned or not allowed;  weight_i = e^s_i
// Top-k, top-p, min-p and the draw end prefixes of one order of the candidates (cuda/row_prefix.cuh).
// One block per row (cuda/vocabulary.h); three to six reads of the row.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/rng.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/piece.h"
#include "cuda/row_prefix.cuh"

namespace at_moe::cuda {

namespace {

constexpr int64_t kStagedIds = 1 << 19;  // of one run of rows, unless one row has more
enum Slots { kScores, kResults };

struct RowOptions {
  float temperature, top_p, min_p, repetition_penalty;
  int32_t top_k;
  uint64_t seed, draw;
  int64_t history = 0, banned = 0, end = 0;  // ids [history, banned) are penalised, [banned, end) are banned
  int64_t allowed = -1;                      // where the words of the allowed set begin; -1: all are
};

struct RowResult {
  int32_t token;  // -1: nothing finite to draw from
  float log_prob;
};

// scores = the row after repetition penalty, bans and the allowed set.
__device__ void penalise(const RowOptions& options, const int32_t* ids, const float* logits, int64_t n, float* scores) {
  // Bit k: whether token i + k is allowed, up to the end of the word that has i.
  const auto allowed = [&](int64_t i) {
    return options.allowed < 0 ? ~0u : static_cast<unsigned>(ids[options.allowed + i / 32]) >> (i % 32);
  };
  visit_fours(n, [&](int64_t i, int count) {
    float x[4];
    load_four(logits + i, count, x);
    const unsigned bits = allowed(i);
    for (int k = 0; k < 4; ++k) {
      if ((bits >> k & 1) == 0) x[k] = -INFINITY;
    }
    store_four(scores + i, count, x);
  });
  __syncthreads();
  for (int64_t i = options.history + threadIdx.x; i < options.banned; i += kRowThreads) {
    const float l = logits[ids[i]];
    if (allowed(ids[i]) & 1) scores[ids[i]] = l < 0 ? l * options.repetition_penalty : l / options.repetition_penalty;
  }
  __syncthreads();
  for (int64_t i = options.banned + threadIdx.x; i < options.end; i += kRowThreads) scores[ids[i]] = -INFINITY;
  __syncthreads();
}

// s of the whole row with the first bins; returns how many weights are at least min_p.
__device__ unsigned weigh(Shared& shared, const RowOptions& options, const float* source, int64_t n, float largest,
                          float* scores) {
  clear(shared.first);
  unsigned heavy = 0, light = 0;
  Mass light_mass = 0;  // of the last bin, which low temperatures fill
  visit_fours(n, [&](int64_t i, int count) {
    float x[4];
    load_four(source + i, count, x);
    for (int k = 0; k < 4; ++k) {
      x[k] = (x[k] - largest) / options.temperature;
      if (k >= count || !(x[k] > -INFINITY)) continue;
      const int bin = first_bin(x[k]);
      if (bin == kBins - 1) ++light, light_mass += mass_of(x[k]);
      else shared.first.add(bin, 1, mass_of(x[k]));
      heavy += expf(x[k]) >= options.min_p;
    }
    store_four(scores + i, count, x);
  });
  if (light > 0) shared.first.add(kBins - 1, light, light_mass);
  accumulate(shared, shared.first, {});
  return block_sum(heavy);
}

// The first index of the largest score.
__device__ int32_t argmax(const float* scores, int64_t n, float largest) {
  int32_t first = INT32_MAX;
  visit_row(scores, n, [&](int64_t i, float x) {
    if (x == largest && i < first) first = static_cast<int32_t>(i);
  });
  return block_reduce(first, [](int32_t a, int32_t b) { return b < a ? b : a; });
}

__device__ int32_t draw(Shared& shared, const RowOptions& options, const float* source, int64_t n, float largest,
                        float* scores) {
  const unsigned heavy = weigh(shared, options, source, n, largest, scores);
  const Row row(shared, scores, n);
  Limit limit;
  if (options.top_k > 0) limit.count = static_cast<unsigned>(options.top_k);
  const Mass total = row.find(limit, false).mass;
  Mass mass = total;
  if (options.top_p < 1 || options.min_p > 0) {
    if (options.min_p > 0 && heavy < limit.count) limit.count = heavy > 0 ? heavy : 1;
    if (options.top_p < 1) {
      const auto reached = static_cast<Mass>(ceil(static_cast<double>(options.top_p) * static_cast<double>(total)));
      limit.mass = reached > 0 ? reached : 1;
    }
    mass = row.find(limit, false).mass;
  }
  const double u = uniform(philox(options.seed, 0, options.draw)[0]);
  const Limit target{kNoCount, static_cast<Mass>(u * static_cast<double>(mass)) + 1};
  return static_cast<int32_t>(static_cast<uint32_t>(row.find(target, true).last));
}

struct SampleArguments {
  const RowOptions* options;
  const int32_t* ids;
  Rows<const float> logits;
  Rows<float> scores;
  int64_t rows, n;
  RowResult* results;
};

// One block per row.
__global__ void __launch_bounds__(kRowThreads) sample_rows(const void* arguments) {
  const SampleArguments args = *static_cast<const SampleArguments*>(arguments);
  if (blockIdx.x >= args.rows) return;
  __shared__ Shared shared;
  const RowOptions& options = args.options[blockIdx.x];
  const float* logits = args.logits.row(blockIdx.x);
  float* scores = args.scores.row(blockIdx.x);
  const int64_t n = args.n;
  const LogSumExp raw = log_sum_exp(logits, n);
  const float* source = logits;
  float largest = raw.largest;
  if (options.end > options.history || options.allowed >= 0) {
    penalise(options, args.ids, logits, n, scores);
    source = scores;
    float own = -INFINITY;
    visit_row(scores, n, [&](int64_t, float x) { own = x > own ? x : own; });
    largest = block_max(own);
  }
  int32_t token = -1;
  if (fabsf(largest) <= FLT_MAX && fabsf(raw.log_sum) <= FLT_MAX) {
    token = options.temperature > 0 ? draw(shared, options, source, n, largest, scores) : argmax(source, n, largest);
  }
  if (threadIdx.x == 0) args.results[blockIdx.x] = {token, token < 0 ? 0 : raw.log_p(logits[token])};
}

RowOptions options_of(const SamplingRow& row, int64_t n, std::vector<int32_t>& ids) {
  RowOptions options{row.temperature, row.top_p, row.min_p, row.repetition_penalty, row.top_k, row.seed, row.draw};
  options.history = static_cast<int64_t>(ids.size());
  if (row.repetition_penalty != 1) ids.insert(ids.end(), row.history, row.history + row.history_length);
  options.banned = static_cast<int64_t>(ids.size());
  ids.insert(ids.end(), row.banned, row.banned + row.banned_length);
  options.end = static_cast<int64_t>(ids.size());
  if (row.allowed) {
    options.allowed = options.end;
    ids.insert(ids.end(), row.allowed, row.allowed + (n + 31) / 32);
  }
  return options;
}

}  // namespace

void CudaBackend::sample(const Sampling& args) {
  const int64_t rows = args.logits.rows, n = args.logits.cols;
  require(static_cast<int64_t>(args.rows.size()) == rows, "sampling: ", args.rows.size(), " options for ", rows,
          " rows");
  require(n < int64_t{1} << (64 - kMassBits - 1), "sampling: a vocabulary of ", n);
  const int64_t score_stride = (n + 3) / 4 * 4;
  float* scores = scratch(kScores, rows * score_stride);
  RowResult* results = scratch<RowResult>(kResults, rows);
  for (int64_t first = 0; first < rows;) {
    std::vector<RowOptions> options;
    std::vector<int32_t> ids;
    int64_t last = first;
    do {
      options.push_back(options_of(args.rows[static_cast<size_t>(last++)], n, ids));
    } while (last < rows && static_cast<int64_t>(ids.size()) < kStagedIds);
    commands_.make_room();
    SampleArguments sample{};
    sample.options = commands_.put(std::span<const RowOptions>(options));
    sample.ids = commands_.put(std::span<const int32_t>(ids));
    sample.logits = rows_of<const float>(args.logits.row_range(first, last - first));
    sample.scores = {scores + first * score_stride, score_stride};
    sample.rows = last - first;
    sample.n = n;
    sample.results = results + first;
    const auto blocks = static_cast<unsigned>(row_bucket(sample.rows));
    commands_.launch(sample_rows, {dim3(blocks), dim3(kRowThreads)}, sample);
    first = last;
  }
  std::vector<RowResult> host(static_cast<size_t>(rows));
  download(host.data(), results, host.size() * sizeof(RowResult));
  for (size_t r = 0; r < host.size(); ++r) {
    if (host[r].token < 0) fail(Code::kNotFinite, "no finite logit to sample a token from");
    args.tokens[r] = host[r].token;
    if (args.log_probs) args.log_probs[r] = host[r].log_prob;
  }
}

}  // namespace at_moe::cuda
