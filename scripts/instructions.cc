// What check-instructions.cjs counts: kernels of the AVX2 set, called once or more often on the same data.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/q8_panel.h"

namespace at_moe::cpu::avx2 {
const Kernels& kernels();
const IntegerKernels& integer_kernels();
}  // namespace at_moe::cpu::avx2

namespace {

using namespace at_moe;
using namespace at_moe::cpu;

int calls = 1;

void measure(const std::function<void()>& kernel) {
  for (int i = 0; i < calls; ++i) kernel();
}

constexpr int64_t kInputs = 512, kPanels = 8, kMostRows = 128;

struct alignas(64) Line {
  char bytes[64];
};

// Zeros, which cost what other numbers do.
template <typename T>
T* memory(int64_t bytes) {
  static std::vector<std::vector<Line>> kept;
  kept.emplace_back(static_cast<size_t>(bytes / 64 + 64));
  return reinterpret_cast<T*>(kept.back().data());
}

void stream(Storage storage, int64_t rows, int64_t panel_bytes) {
  Lines lines;
  lines.rows = rows;
  lines.panels = kPanels;
  lines.k = kInputs;
  lines.w = memory<char>(panel_bytes * kPanels);
  lines.w_panel = panel_bytes;
  lines.a = memory<float>(4 * rows * kInputs);
  lines.a_row = kInputs;
  lines.acc = memory<float>(4 * rows * kPanels * 16);
  lines.acc_row = kPanels * 16;
  measure([&] { avx2::kernels().lines[static_cast<int>(storage)](lines); });
}

void multiply() {
  Tile tile;
  tile.rows = kMostRows;
  tile.panels = kPanels;
  tile.k = kBlockK;
  tile.a = memory<float>(4 * kMostRows * kBlockK);
  tile.a_row = kBlockK;
  tile.b = memory<float>(4 * kPanels * kBlockK * 16);
  tile.b_panel = kBlockK * 16;
  tile.acc = memory<float>(4 * kMostRows * kPanels * 16);
  tile.acc_row = kPanels * 16;
  measure([&] { avx2::kernels().multiply(tile); });
}

void widen(Storage storage) {
  const char* panel = memory<char>(kInputs * 64);
  float* out = memory<float>(kInputs * 64);
  measure([&] { avx2::kernels().widen[static_cast<int>(storage)](panel, 0, kInputs, out); });
}

void quantize() {
  float* x = memory<float>(4 * kInputs);
  for (int64_t i = 0; i < kInputs; ++i) x[i] = static_cast<float>(i + 1);
  const int64_t block = avx2::integer_kernels().row_bytes;
  char* out = memory<char>(kInputs / kQ8Block * block);
  measure([&] { avx2::integer_kernels().convert(x, kInputs, out, block); });
}

void dots(int64_t rows) {
  Dots dots;
  dots.rows = rows;
  dots.panels = kPanels;
  dots.blocks = kInputs / kQ8Block;
  dots.w_panel = Q8Panel::bytes(kInputs);
  dots.w = memory<char>(dots.w_panel * kPanels);
  dots.a_block = rows * avx2::integer_kernels().row_bytes;
  dots.a = memory<char>(dots.a_block * dots.blocks);
  dots.acc = memory<float>(4 * rows * kPanels * 16);
  dots.acc_row = kPanels * 16;
  measure([&] { avx2::integer_kernels().multiply(dots); });
}

const std::map<std::string, std::function<void()>> kernels = {
    {"lines f32, 1 row", [] { stream(Storage::f32, 1, kInputs * 64); }},
    {"lines bf16, 1 row", [] { stream(Storage::bf16, 1, kInputs * 32); }},
    {"lines bf16, 6 rows", [] { stream(Storage::bf16, 6, kInputs * 32); }},
    {"lines q8, 1 row", [] { stream(Storage::q8, 1, Q8Panel::bytes(kInputs)); }},
    {"multiply, 128 rows", multiply},
    {"widen bf16", [] { widen(Storage::bf16); }},
    {"widen q8", [] { widen(Storage::q8); }},
    {"quantize, 1 row", quantize},
    {"dots q8, 1 row", [] { dots(1); }},
    {"dots q8, 8 rows", [] { dots(8); }},
    {"dots q8, 128 rows", [] { dots(kMostRows); }},
};

}  // namespace

// With the name of a kernel and a number: calls it so often. Without: prints the compiler, then the names.
int main(int count, char** arguments) {
  if (count == 3) {
    calls = std::stoi(arguments[2]);
    kernels.at(arguments[1])();
    return 0;
  }
#if defined(__clang__)
  std::printf("clang %d\n", __clang_major__);
#else
  std::printf("gcc %d\n", __GNUC__);
#endif
  for (const auto& [name, _] : kernels) std::printf("%s\n", name.c_str());
}
