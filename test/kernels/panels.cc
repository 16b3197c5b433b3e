// Packing into panels, and panels and blocks read back: exact, whatever the values.
#include "test/kernels/panels.h"

#include <algorithm>
#include <cstring>

namespace at_moe::cpu {

namespace {

constexpr int64_t kLengths[] = {1, 2, 7, 16, 31, 32, 33, 64, 70, 129};

void store_value(DType type, float value, void* at) {
  const uint16_t half = type == DType::f32 ? 0 : to_half_bits(type, value);
  if (type == DType::f32) std::memcpy(at, &value, 4);
  else std::memcpy(at, &half, 2);
}

// Numbers of every kind that a weight may hold, and what rounds to a tie.
float any_number(Random& random, int64_t index) {
  constexpr float kSpecial[] = {0.0f,     -0.0f,          0x1p-24f,         0x1p-25f,        0x1.8p-24f, -0x1.ffcp15f,
                                65504.0f, 1.0f + 0x1p-8f, 1.0f + 0x1.8p-7f, 1.0f + 0x1p-11f, 0x1p-14f,   0x1.ffp-15f};
  constexpr int64_t kCount = std::size(kSpecial);
  if (index % 5 == 3) return kSpecial[random.below(kCount)];
  return random.uniform() * std::exp2(static_cast<float>(random.below(12) - 6));
}

// 16 rows, `row_bytes` apart.
struct Source {
  DType type = DType::f32;
  int64_t row_bytes = 0;
  Bytes bytes;

  Source(DType own, int64_t cols, int64_t gap, uint32_t seed)
      : type(own),
        row_bytes(cols * static_cast<int64_t>(size_of(own)) + gap),
        bytes(static_cast<size_t>(16 * row_bytes)) {
    Random random(seed);
    for (int64_t r = 0; r < 16; ++r) {
      for (int64_t i = 0; i < cols; ++i) store_value(type, any_number(random, r + i), at(r, i));
    }
  }
  char* at(int64_t row, int64_t input) {
    return bytes.data() + row * row_bytes + input * static_cast<int64_t>(size_of(type));
  }
};

Bytes unwritten(int64_t bytes) { return Bytes(static_cast<size_t>(bytes), '\x5A'); }

}  // namespace

void store_number(DType type, float value, int64_t output, int64_t input, char* panel) {
  const int64_t place = type == DType::bf16 ? input / 2 * 32 + output * 2 + input % 2 : input * 16 + output;
  store_value(type, value, panel + place * static_cast<int64_t>(size_of(type)));
}

void store_code(int8_t code, int64_t output, int64_t input, char* panel) {
  panel[Q8Panel::line(input / 4 * 4) + output * 4 + input % 4] = static_cast<char>(code ^ Q8Panel::kFlip);
}

void store_scale(uint16_t scale, int64_t output, int64_t input, char* panel) {
  std::memcpy(panel + Q8Panel::scales(input) + 2 * output, &scale, 2);
}

Panels make_panels(Storage storage, int64_t panels, int64_t cols, uint32_t seed) {
  Random random(seed);
  Panels made;
  made.cols = cols;
  made.panel_bytes = CpuWeight::panel_bytes(cols, storage);
  made.bytes.resize(static_cast<size_t>(panels * made.panel_bytes));
  for (int64_t o = 0; o < 16 * panels; ++o) {
    char* panel = made.bytes.data() + o / 16 * made.panel_bytes;
    for (int64_t i = 0; i < cols; ++i) {
      if (!is_blocks(storage)) {
        const DType type = number_type(storage);
        char stored[4];
        store_value(type, random.uniform(), stored);
        made.values.push_back(to_float(type, stored, 0));
        store_number(type, made.values.back(), o % 16, i, panel);
        continue;
      }
      if (i % kQ8Block == 0) {
        const uint16_t scale = to_half_bits(DType::f16, 0.01f * (random.uniform() + 1.5f));
        made.scales.push_back(half_to_float(scale));
        store_scale(scale, o % 16, i, panel);
      }
      made.codes.push_back(static_cast<int8_t>(random.below(255) - 127));
      made.values.push_back(made.scales.back() * static_cast<float>(made.codes.back()));
      store_code(made.codes.back(), o % 16, i, panel);
    }
    if (!is_blocks(storage)) continue;
    for (int64_t i = cols; i % kQ8Block != 0; ++i) store_code(0, o % 16, i, panel);
  }
  return made;
}

void check_widen(const KernelSet& set) {
  constexpr int64_t kCols = 150, kStride = 19;
  for (const Storage storage : kStorages) {
    const Panels panels = make_panels(storage, 1, kCols, 1);
    const int index = static_cast<int>(storage);
    for (int64_t begin = 0; begin < kCols; begin += is_blocks(storage) ? 4 : 2) {
      for (int64_t count = 1; count <= std::min<int64_t>(kCols - begin, 40); ++count) {
        const Floats untouched(40 * kStride, 0.5f);
        Floats actual = untouched, expected = untouched;
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t o = 0; o < 16; ++o) expected[static_cast<size_t>(i * 16 + o)] = panels.value(o, begin + i);
        }
        set.kernels.widen[index](panels.panel(0), begin, count, actual.data());
        expect_same(actual, expected, "widen ", name_of(storage), " from ", begin, " count ", count);
        if (count > 16) continue;
        actual = expected = untouched;
        for (int64_t o = 0; o < 16; ++o) {
          for (int64_t i = 0; i < 16; ++i) {
            expected[static_cast<size_t>(o * kStride + i)] = i < count ? panels.value(o, begin + i) : 0.0f;
          }
        }
        set.kernels.widen_transposed[index](panels.panel(0), begin, count, actual.data(), kStride);
        expect_same(actual, expected, "widen_transposed ", name_of(storage), " from ", begin, " count ", count);
      }
    }
  }
}

void check_transpose(const KernelSet& set) {
  constexpr int64_t kIn = 21, kOut = 18;
  Floats in = Random(2).uniform(16 * kIn);
  in[3] = kNan;
  in[4] = -kInfinity;
  Floats actual(16 * kOut, 0.5f), expected = actual;
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 16; ++j) expected[static_cast<size_t>(j * kOut + i)] = in[static_cast<size_t>(i * kIn + j)];
  }
  set.kernels.transpose(in.data(), kIn, actual.data(), kOut);
  expect_same(actual, expected, "transpose");
}

void check_pack(const KernelSet& set) {
  for (const DType from : kTypes) {
    for (const DType to : kTypes) {
      for (const int64_t cols : kLengths) {
        for (const int64_t rows : {1, 15, 16}) {
          for (const int64_t gap : {0, 4, 6}) {
            Source source(from, cols, gap / static_cast<int64_t>(size_of(from)) * static_cast<int64_t>(size_of(from)),
                          3);
            if (from != DType::f16) {  // of which no other values are loaded
              store_value(from, kInfinity, source.at(2, 0));
              store_value(from, kNan, source.at(3, cols - 1));
              store_value(from, -65520.0f, source.at(4, 0));
            }
            Bytes expected(static_cast<size_t>(CpuWeight::panel_bytes(cols, storage_of(to))));
            Bytes actual = unwritten(static_cast<int64_t>(expected.size()));
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t i = 0; i < cols; ++i) {
                store_number(to, to_float(from, source.at(r, i), 0), r, i, expected.data());
              }
            }
            set.kernels.pack(source.bytes.data(), source.row_bytes, from, rows, cols, to, actual.data());
            expect_same(actual, expected, "pack ", name_of(from), " to ", name_of(to), ", ", rows, " x ", cols);
          }
        }
      }
    }
  }
}

// Quantised here and by the kernel, and then the same blocks as they are.
void check_pack_blocks(const KernelSet& set) {
  for (const DType from : kTypes) {
    for (const int64_t cols : kLengths) {
      Source source(from, cols, 0, 4);
      for (int64_t i = 0; i < cols; ++i) store_value(from, 0.0f, source.at(5, i));
      for (int64_t i = 0; i < cols; ++i) store_value(from, 0x1p-24f * static_cast<float>(i % 9), source.at(6, i));
      const int64_t blocks = q8_blocks(cols);
      std::vector<int8_t> codes(static_cast<size_t>(16 * cols));
      std::vector<uint16_t> scales(static_cast<size_t>(16 * blocks));
      quantize(from, source.bytes.data(), 16, cols, codes.data(), scales.data());
      // The half of the last scales that no block has is not defined.
      Bytes expected = unwritten(Q8Panel::bytes(cols)), quantized = expected, stored = expected;
      for (int64_t r = 0; r < 16; ++r) {
        for (int64_t i = 0; i < blocks * kQ8Block; ++i) {
          store_code(i < cols ? codes[static_cast<size_t>(r * cols + i)] : int8_t{0}, r, i, expected.data());
        }
        for (int64_t b = 0; b < blocks; ++b) {
          store_scale(scales[static_cast<size_t>(r * blocks + b)], r, b * kQ8Block, expected.data());
        }
      }
      set.kernels.pack_quantized(source.bytes.data(), source.row_bytes, from, cols, quantized.data());
      expect_same(quantized, expected, "pack_quantized ", name_of(from), " of ", cols);
      set.kernels.pack_blocks({codes.data(), scales.data(), cols}, stored.data());
      expect_same(stored, expected, "pack_blocks of ", cols);
    }
  }
}

}  // namespace at_moe::cpu
