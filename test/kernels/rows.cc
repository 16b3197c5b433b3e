// Functions of rows: those that every set computes in the same order bit for bit, the others within the roundings of their
// definitions.
#include <algorithm>

#include "cpu/lanes.h"
#include "test/kernels/check.h"

namespace at_moe::cpu {

namespace {

constexpr double kHalfUlp = 0x1p-24;
constexpr double kLeastExp = 1.7e-38;  // above e^-87, below which e^x is zero

// Of e^(a - b) where the difference and e^x are rounded, the latter within 2 ulp.
double exp_bound(double difference) { return std::exp(difference) * (std::abs(difference) + 5) * kHalfUlp + kLeastExp; }

// f(keys, first, last) for masks of many shapes.
template <typename F>
void for_masks(F&& f) {
  for (const int64_t keys : {16, 32, 48, 256}) {
    for (const int64_t first : {0, 1, 5, 15, 16, 20}) {
      for (const int64_t last : {1, 2, 6, 15, 16, 17, 31, 32, 40, 48, 250, 256}) {
        if (first < last && last <= keys) f(keys, first, last);
      }
    }
  }
}

Floats scores(int64_t keys, uint32_t seed) {
  Floats values = Random(seed).uniform(keys);
  for (int64_t i = 0; i < keys; ++i) values[static_cast<size_t>(i)] *= i % 7 == 2 ? 60.0f : 5.0f;
  return values;
}

constexpr float kNumbers[] = {0.0f,   -0.0f,  1.0f,    -1.0f,     20.0f,      -20.0f, 87.5f,
                              -87.5f, 200.0f, -200.0f, kInfinity, -kInfinity, kNan};

Floats numbers(int64_t n, uint32_t seed) {
  Random random(seed);
  Floats values = random.uniform(n);
  for (float& value : values) {
    const int64_t kind = random.below(40);
    value = kind < static_cast<int64_t>(std::size(kNumbers)) ? kNumbers[kind] : 8 * value;
  }
  return values;
}

float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace

void check_softmax(const KernelSet& set) {
  for_masks([&](int64_t keys, int64_t first, int64_t last) {
    Floats row = scores(keys, 1);
    if (last - first > 2) row[static_cast<size_t>(first + 1)] = -kInfinity;
    if (first > 0) row[static_cast<size_t>(first - 1)] = 1000;
    if (last < keys) row[static_cast<size_t>(last)] = kNan;
    const Floats before = row;
    const float maximum = *std::max_element(before.begin() + first, before.begin() + last);
    const ScoreRow found = set.kernels.softmax(row.data(), keys, first, last);
    expect(same(found.maximum, maximum), "softmax: the maximum is ", found.maximum, ", expected ", maximum);
    double sum = 0;
    for (int64_t i = 0; i < keys; ++i) {
      const auto at = static_cast<size_t>(i);
      if (i < first || i >= last || before[at] == -kInfinity) {
        expect(same(row[at], 0.0f), "softmax: [", i, "] of ", first, " to ", last, " is ", row[at], ", expected 0");
        continue;
      }
      const double difference = static_cast<double>(before[at]) - maximum;
      expect_near(row[at], std::exp(difference), exp_bound(difference), "softmax: [", i, "]");
      sum += row[at];
    }
    expect_near(found.sum, sum, sum * static_cast<double>(last - first) * kHalfUlp, "softmax: the sum");
  });
}

void check_softmax_backward(const KernelSet& set) {
  for_masks([&](int64_t keys, int64_t first, int64_t last) {
    constexpr float kLse = 61.5f, kDelta = 0.3f;
    Floats p = scores(keys, 2), ds = Random(3).uniform(keys);
    if (first > 0) p[static_cast<size_t>(first - 1)] = ds[static_cast<size_t>(first - 1)] = kNan;
    const Floats s = p, dp = ds;
    set.kernels.softmax_backward(p.data(), ds.data(), keys, first, last, kLse, kDelta);
    for (int64_t i = 0; i < keys; ++i) {
      const auto at = static_cast<size_t>(i);
      if (i < first || i >= last) {
        expect(same(p[at], 0.0f) && same(ds[at], 0.0f), "softmax_backward: [", i, "] of ", first, " to ", last,
               " is not 0");
        continue;
      }
      const double difference = static_cast<double>(s[at]) - kLse;
      expect_near(p[at], std::exp(difference), exp_bound(difference), "softmax_backward: P[", i, "]");
      const double slope = static_cast<double>(dp[at]) - kDelta;
      expect_near(ds[at], p[at] * slope, std::abs(p[at] * slope) * 3 * kHalfUlp + kLeastExp, "softmax_backward: ds[", i,
                  "]");
    }
  });
}

void check_blend_and_dot(const KernelSet& set) {
  for (const int64_t n : {16, 32, 48, 80}) {
    const Floats in = Random(4).uniform(n), before = Random(5).uniform(n);
    Floats out = before;
    constexpr float kKeep = 0.7f, kTake = -1.3f;
    set.kernels.blend(out.data(), in.data(), n, kKeep, kTake);
    for (size_t i = 0; i < out.size(); ++i) {
      const double kept = static_cast<double>(before[i]) * kKeep, taken = static_cast<double>(in[i]) * kTake;
      expect_near(out[i], kept + taken, (std::abs(kept) + std::abs(taken)) * 2 * kHalfUlp, "blend: [", i, "]");
    }
  }
  for (int64_t n = 0; n <= 70; ++n) {
    const Floats a = Random(6).uniform(n), b = Random(7).uniform(n);
    double sum = 0, magnitude = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      sum += static_cast<double>(a[i]) * b[i];
      magnitude += std::abs(static_cast<double>(a[i]) * b[i]);
    }
    expect_near(set.kernels.dot(a.data(), b.data(), n), sum, magnitude * (static_cast<double>(n) + 1) * kHalfUlp,
                "dot of ", n);
  }
}

void check_swiglu(const KernelSet& set) {
  for (int64_t n = 0; n <= 70; ++n) {
    const Floats gate = numbers(n, 8), up = numbers(n, 9), dy = numbers(n, 10);
    Floats y(gate.size()), dgate(gate.size()), dup(gate.size());
    for (size_t i = 0; i < gate.size(); ++i) {
      const float g = gate[i], s = sigmoid(g);
      y[i] = g * s * up[i];
      dup[i] = dy[i] * (g * s);
      dgate[i] = dy[i] * up[i] * (s * (1.0f + g * (1.0f - s)));
    }
    Floats out(gate.size()), of_gate = gate, of_up = up;
    set.kernels.swiglu(gate.data(), up.data(), out.data(), n);
    expect_same(out, y, "swiglu of ", n);
    set.kernels.swiglu(of_gate.data(), up.data(), of_gate.data(), n);
    expect_same(of_gate, y, "swiglu in place of ", n);
    of_gate = gate;
    set.kernels.swiglu_backward(of_gate.data(), of_up.data(), dy.data(), of_gate.data(), of_up.data(), n);
    expect_same(of_gate, dgate, "swiglu_backward of ", n, ", of the gate");
    expect_same(of_up, dup, "swiglu_backward of ", n, ", of up");
  }
}

void check_exponentials(const KernelSet& set) {
  for (const int64_t n : {1, 15, 16, 17, 1023, 1024, 1040, 3000}) {
    const Floats l = scores(n, 11);
    constexpr float kLargest = 60.0f, kLogSum = 2.5f, kWeight = 0.25f;
    const double expected = sum_lanes(n, [&](int64_t i) { return fast_exp(l[static_cast<size_t>(i)] - kLargest); });
    const double sum = set.kernels.exp_sum(l.data(), n, kLargest);
    expect(sum == expected, "exp_sum of ", n, " is ", sum, ", expected ", expected);
    Floats scaled = l, wanted = l;
    for (float& value : wanted) value = kWeight * fast_exp((value - kLargest) - kLogSum);
    set.kernels.exp_scaled(scaled.data(), n, kLargest, kLogSum, kWeight);
    expect_same(scaled, wanted, "exp_scaled of ", n);
  }
}

// Sums of small integers are exact in any order.
void check_probes(const KernelSet& set) {
  for (const int64_t bytes : {512, 1024, 5120}) {
    Floats data(static_cast<size_t>(bytes / 4));
    float expected = 0;
    for (size_t i = 0; i < data.size(); ++i) expected += data[i] = static_cast<float>(i % 11);
    const float sum = set.kernels.read(reinterpret_cast<const char*>(data.data()), bytes);
    expect(sum == expected, "read of ", bytes, " bytes is ", sum, ", expected ", expected);
  }
  float keep = 1;
  const int64_t once = set.kernels.spin_fma(1, &keep), often = set.kernels.spin_fma(1000, &keep);
  expect(once > 0 && often == 1000 * once, "spin_fma counts ", once, " in a round, ", often, " in 1000");
  expect(std::isfinite(keep), "spin_fma keeps ", keep);
}

}  // namespace at_moe::cpu
