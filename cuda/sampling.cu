// Sampling of one token per row (contract: backend/ops/sampling.h).
//   s_i = (l_i - max l) / temperature <= 0, l the penalised logits, -inf if banned or not allowed;  weight_i = e^s_i
// The order of candidates is ascending (|s_i| as bits, i): a place, unique in the row. What top-k, top-p, min-p and the
// draw ask for is always a prefix of that order, ended by a count or by a mass. It is found without sorting the row:
// counts and masses of kBins intervals of places, one interval chosen, and so on until what is left fits a sort in
// shared memory. The first intervals are of equal width in s, which spreads logits well; they serve all the prefixes of
// a row. Masses are integers of 2^-kMassBits, so that they are exact in any order of summation.
// One block per row (cuda/vocabulary.h); three to six reads of the row.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/rng.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/piece.h"
#include "cuda/vocabulary.h"

namespace at_moe::cuda {

namespace {

using Place = unsigned long long;
using Mass = unsigned long long;

constexpr int kBins = 1024;
constexpr int kBinsPerThread = kBins / kRowThreads;
constexpr int kSorted = 1024;          // places that are sorted at once
constexpr float kBinsPerUnit = 32;     // of s; a power of two, so that the bounds are exact
constexpr int kMassBits = 42;          // a vocabulary of 2^21 does not overflow
constexpr Mass kNoMass = ~Mass{0};     // larger than any
constexpr unsigned kNoCount = ~0u;     // larger than any
constexpr Place kNoPlace = ~Place{0};  // after all others
constexpr uint32_t kInfinite = 0x7F800000;
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

struct Prefix {
  unsigned count = 0;
  Mass mass = 0;
  Place last = kNoPlace;  // known when it was asked for
};

// The end of a prefix: at `count` places or where the mass before a place reaches `mass`, whichever comes first.
struct Limit {
  unsigned count = kNoCount;
  Mass mass = kNoMass;
  __device__ bool inside(const Prefix& before) const { return before.count < count && before.mass < mass; }
};

// Counts and masses of the bins, or with accumulate() those before each bin, with the total at the end. A mass is two
// words: shared memory adds 32 bits at once in hardware, 64 bits in a loop.
struct Histogram {
  unsigned counts[kBins + 1], low[kBins + 1], high[kBins + 1];

  __device__ Mass mass(int bin) const { return Mass{high[bin]} << 32 | low[bin]; }
  __device__ Prefix at(int bin) const { return {counts[bin], mass(bin), kNoPlace}; }
  __device__ void set(int bin, unsigned count, Mass mass) {
    counts[bin] = count;
    low[bin] = static_cast<unsigned>(mass);
    high[bin] = static_cast<unsigned>(mass >> 32);
  }
  __device__ void add(int bin, unsigned count, Mass mass) {
    atomicAdd(&counts[bin], count);
    const unsigned part = static_cast<unsigned>(mass), old = atomicAdd(&low[bin], part);
    const unsigned above = static_cast<unsigned>(mass >> 32) + (old + part < old);
    if (above) atomicAdd(&high[bin], above);
  }
};

struct Shared {
  Histogram first, narrow;
  Place list[kSorted];
  unsigned listed;
  int bin;
  unsigned warp_count[kRowWarps];
  Mass warp_mass[kRowWarps];
};

__device__ Mass mass_of(float s) { return static_cast<Mass>(expf(s) * static_cast<float>(Mass{1} << kMassBits)); }
__device__ Place place_of(uint32_t magnitude, int64_t i) { return Place{magnitude} << 32 | static_cast<uint32_t>(i); }
__device__ uint32_t magnitude_of(float s) { return std::bit_cast<uint32_t>(s) & 0x7FFFFFFF; }
__device__ float score_at(Place place) { return -std::bit_cast<float>(static_cast<uint32_t>(place >> 32)); }

// The first bins: b has s with b <= -s kBinsPerUnit < b + 1, the last one all below.
__device__ int first_bin(float s) { return static_cast<int>(fminf(-s * kBinsPerUnit, kBins - 1)); }
__device__ Place first_bound(int bin) {
  if (bin == kBins) return place_of(kInfinite, 0);
  return place_of(std::bit_cast<uint32_t>(static_cast<float>(bin) / kBinsPerUnit), 0);
}

__device__ void clear(Histogram& bins) {
  for (int b = threadIdx.x; b < kBins; b += kRowThreads) bins.set(b, 0, 0);
  __syncthreads();
}

// Counts and masses become the sums before each bin, from `before` on.
__device__ void accumulate(Shared& shared, Histogram& bins, const Prefix& before) {
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, begin = threadIdx.x * kBinsPerThread;
  unsigned count = 0;
  Mass mass = 0;
  for (int b = begin; b < begin + kBinsPerThread; ++b) count += bins.counts[b], mass += bins.mass(b);
  unsigned count_sum = count;
  Mass mass_sum = mass;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned count_left = __shfl_sync(~0u, count_sum, lane - step);
    const Mass mass_left = __shfl_sync(~0u, mass_sum, lane - step);
    if (lane >= step) count_sum += count_left, mass_sum += mass_left;
  }
  if (lane == 31) shared.warp_count[warp] = count_sum, shared.warp_mass[warp] = mass_sum;
  __syncthreads();
  count = before.count + count_sum - count;
  mass = before.mass + mass_sum - mass;
  for (int w = 0; w < warp; ++w) count += shared.warp_count[w], mass += shared.warp_mass[w];
  for (int b = begin; b < begin + kBinsPerThread; ++b) {
    const Prefix own = bins.at(b);
    bins.set(b, count, mass);
    count += own.count, mass += own.mass;
  }
  if (threadIdx.x == kRowThreads - 1) bins.set(kBins, count, mass);
  __syncthreads();
}

// The bin in which the prefix ends.
__device__ int choose(Shared& shared, const Histogram& bins, const Limit& limit) {
  __syncthreads();  // the last choice has been read
  for (int b = threadIdx.x; b < kBins; b += kRowThreads) {
    const bool next = b + 1 < kBins && limit.inside(bins.at(b + 1));
    if (limit.inside(bins.at(b)) && !next) shared.bin = b;
  }
  __syncthreads();
  return shared.bin;
}

__device__ void sort_list(Shared& shared, int count) {
  int padded = 1;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += kRowThreads) shared.list[i] = kNoPlace;
  __syncthreads();
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int t = threadIdx.x; t < padded / 2; t += kRowThreads) {
        const int i = t / step * 2 * step + t % step;
        const Place a = shared.list[i], b = shared.list[i + step];
        if ((a > b) == ((i & size) == 0)) shared.list[i] = b, shared.list[i + step] = a;
      }
      __syncthreads();
    }
  }
}

class Row {
 public:
  // `scores` holds s, -inf for what cannot be drawn.
  __device__ Row(Shared& shared, const float* scores, int64_t n) : shared_(shared), scores_(scores), n_(n) {}

  // The prefix that ends at the limit; it has at least one place. `last` is known if `name_last`, or else may be.
  __device__ Prefix find(const Limit& limit, bool name_last) const {
    int bin = choose(shared_, shared_.first, limit);
    Prefix before = shared_.first.at(bin), with = shared_.first.at(bin + 1);
    Place begin = first_bound(bin), end = first_bound(bin + 1);
    while (true) {
      if (!name_last && with.count <= limit.count && with.mass <= limit.mass) return with;
      if (with.count - before.count <= kSorted) return walk(limit, begin, end, before);
      int shift = 0;
      while ((end - begin - 1) >> shift >= kBins) ++shift;
      narrow(begin, end, shift, before);
      bin = choose(shared_, shared_.narrow, limit);
      before = shared_.narrow.at(bin);
      with = shared_.narrow.at(bin + 1);
      begin += static_cast<Place>(bin) << shift;
      end = begin + (Place{1} << shift) < end ? begin + (Place{1} << shift) : end;
      __syncthreads();  // all have read the bins
    }
  }

 private:
  // f(place, s) for the places of [begin, end) that this thread has.
  template <typename F>
  __device__ void visit(Place begin, Place end, F f) const {
    visit_row(scores_, n_, [&](int64_t i, float s) {
      const Place place = place_of(magnitude_of(s), i);
      if (place >= begin && place < end) f(place, s);
    });
  }

  __device__ void narrow(Place begin, Place end, int shift, const Prefix& before) const {
    clear(shared_.narrow);
    visit(begin, end,
          [&](Place place, float s) { shared_.narrow.add(static_cast<int>((place - begin) >> shift), 1, mass_of(s)); });
    accumulate(shared_, shared_.narrow, before);
  }

  __device__ Prefix walk(const Limit& limit, Place begin, Place end, const Prefix& before) const {
    if (threadIdx.x == 0) shared_.listed = 0;
    __syncthreads();
    visit(begin, end, [&](Place place, float) { shared_.list[atomicAdd(&shared_.listed, 1u)] = place; });
    __syncthreads();
    const int count = static_cast<int>(shared_.listed);
    sort_list(shared_, count);
    clear(shared_.narrow);
    for (int i = threadIdx.x; i < count; i += kRowThreads) {
      shared_.narrow.set(i, 1, mass_of(score_at(shared_.list[i])));
    }
    accumulate(shared_, shared_.narrow, before);
    const int last = choose(shared_, shared_.narrow, limit);
    const int ended = last < count ? last : count - 1;
    Prefix found = shared_.narrow.at(ended + 1);
    found.last = shared_.list[ended];
    return found;
  }

  Shared& shared_;
  const float* scores_;
  int64_t n_;
};
static_assert(kSorted <= kBins, "a sorted list is walked as bins of one place");

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
