// The order of the candidates of a row, and where its prefixes end.
//   s_i = (l_i - max l) / temperature <= 0, -inf for what cannot be drawn;  weight_i = e^s_i
// The order is ascending (|s_i| as bits, i): a place, unique in the row. What top-k, top-p, min-p and the draw ask for is
// always a prefix of that order, ended by a count or by a mass. It is found without sorting the row: counts and masses of
// kBins intervals of places, one interval chosen, and so on until what is left fits a sort in shared memory. The first
// intervals are of equal width in s, which spreads logits well; they serve all the prefixes of a row. Masses are integers
// of 2^-kMassBits, so that they are exact in any order of summation.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/vocabulary.h"

namespace at_moe::cuda {

using Place = unsigned long long;
using Mass = unsigned long long;

inline constexpr int kBins = 1024;
inline constexpr int kBinsPerThread = kBins / kRowThreads;
inline constexpr int kSorted = 1024;          // places that are sorted at once
inline constexpr float kBinsPerUnit = 32;     // of s; a power of two, so that the bounds are exact
inline constexpr int kMassBits = 42;          // a vocabulary of 2^21 does not overflow
inline constexpr Mass kNoMass = ~Mass{0};     // larger than any
inline constexpr unsigned kNoCount = ~0u;     // larger than any
inline constexpr Place kNoPlace = ~Place{0};  // after all others
inline constexpr uint32_t kInfinite = 0x7F800000;

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

__device__ inline Mass mass_of(float s) {
  return static_cast<Mass>(expf(s) * static_cast<float>(Mass{1} << kMassBits));
}
__device__ inline Place place_of(uint32_t magnitude, int64_t i) {
  return Place{magnitude} << 32 | static_cast<uint32_t>(i);
}
__device__ inline uint32_t magnitude_of(float s) { return std::bit_cast<uint32_t>(s) & 0x7FFFFFFF; }
__device__ inline float score_at(Place place) { return -std::bit_cast<float>(static_cast<uint32_t>(place >> 32)); }

// The first bins: b has s with b <= -s kBinsPerUnit < b + 1, the last one all below.
__device__ inline int first_bin(float s) { return static_cast<int>(fminf(-s * kBinsPerUnit, kBins - 1)); }
__device__ inline Place first_bound(int bin) {
  if (bin == kBins) return place_of(kInfinite, 0);
  return place_of(std::bit_cast<uint32_t>(static_cast<float>(bin) / kBinsPerUnit), 0);
}

__device__ inline void clear(Histogram& bins) {
  for (int b = threadIdx.x; b < kBins; b += kRowThreads) bins.set(b, 0, 0);
  __syncthreads();
}

// Counts and masses become the sums before each bin, from `before` on.
__device__ inline void accumulate(Shared& shared, Histogram& bins, const Prefix& before) {
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
__device__ inline int choose(Shared& shared, const Histogram& bins, const Limit& limit) {
  __syncthreads();  // the last choice has been read
  for (int b = threadIdx.x; b < kBins; b += kRowThreads) {
    const bool next = b + 1 < kBins && limit.inside(bins.at(b + 1));
    if (limit.inside(bins.at(b)) && !next) shared.bin = b;
  }
  __syncthreads();
  return shared.bin;
}

__device__ inline void sort_list(Shared& shared, int count) {
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

}  // namespace at_moe::cuda
