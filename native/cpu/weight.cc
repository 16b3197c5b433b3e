#include "cpu/weight.h"

#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"

namespace at_moe {

namespace {

constexpr int64_t kReadBytes = int64_t{256} << 10;  // stays in a second-level cache

StoredRows from_row(const StoredRows& rows, int64_t row) {
  return std::visit([row](const auto& all) -> StoredRows { return all.from_row(row); }, rows);
}

// Rows [row, row + count) that cover a panel only in part: packed apart, then their lanes are copied. Returns whether all
// values are finite.
bool pack_lanes(const cpu::Kernels& kernels, const CpuWeight& weight, int64_t row, int64_t count,
                const NumberRows& source, char* temporary) {
  const DType type = number_type(weight.storage());
  const auto* values = static_cast<const char*>(source.values);
  const bool finite = kernels.pack(values, source.row_bytes(), source.type, count, source.cols, type, temporary);
  const size_t lane = type == DType::f16 ? 2 : 4;
  const size_t first = static_cast<size_t>(row % kPanel) * lane, line = lane * kPanel;
  char* panel = weight.panel(row / kPanel);
  for (size_t at = 0; at < static_cast<size_t>(weight.panel_bytes()); at += line) {
    std::memcpy(panel + at + first, temporary + at, static_cast<size_t>(count) * lane);
  }
  return finite;
}

// Rows [row, row + count) of one panel that they cover only in part.
void pack_block_lanes(const CpuWeight& weight, int64_t row, int64_t count, const Q8Rows& source) {
  char* panel = weight.panel(row / kPanel);
  const int64_t lane = row % kPanel, cols = weight.cols();
  for (int64_t begin = 0; begin < cols; begin += kQ8Block) {
    const int64_t end = std::min(begin + kQ8Block, cols);
    for (int64_t r = 0; r < count; ++r) {
      const Q8Rows own = source.from_row(r);
      std::memcpy(panel + Q8Panel::scales(begin) + 2 * (lane + r), own.scales + begin / kQ8Block, 2);
      for (int64_t i = begin; i < end; i += 4) {
        char* stored = panel + Q8Panel::line(i) + 4 * (lane + r);
        const int64_t inputs = std::min<int64_t>(4, end - i);
        for (int64_t at = 0; at < inputs; ++at) stored[at] = static_cast<char>(own.values[i + at] ^ Q8Panel::kFlip);
      }
    }
  }
}

// Rows [row, row + count) in runs that end at multiples of `run`: how many there are.
int64_t runs_of(int64_t row, int64_t count, int64_t run) {
  return count > 0 ? (row + count - 1) / run - row / run + 1 : 0;
}

// The rows of run `index` of them.
std::pair<int64_t, int64_t> run_at(int64_t row, int64_t count, int64_t run, int64_t index) {
  const int64_t first = (row / run + index) * run, begin = std::max(row, first);
  return {begin, std::min(row + count, first + run) - begin};
}

// Rows of a tensor that a thread reads at once.
int64_t rows_at_once(const TensorSource& source) {
  return std::max<int64_t>(kPanel, kReadBytes / static_cast<int64_t>(source.row_bytes()) / kPanel * kPanel);
}

void check_part(const LoadedRows& part) {
  const TensorSource& source = *part.source;
  require(part.row >= 0 && part.count >= 0 && part.row + part.count <= source.rows(), "load: rows ", part.row, " + ",
          part.count, " of ", source.rows());
  if (!part.weight) return;
  require(part.weight->rows() == source.rows() && part.weight->cols() == source.cols(), "load: ", source.name,
          " does not fit its weight");
  require(!is_blocks(source.storage) || is_blocks(part.weight->storage()), "load: blocks into ",
          name_of(part.weight->storage()));
}

}  // namespace

bool CpuBackend::pack_panel(const Weight& target, int64_t row, int64_t count, const StoredRows& source, int worker) {
  const auto& weight = static_cast<const CpuWeight&>(target);
  char* panel = weight.panel(row / kPanel);
  const bool whole = count == kPanel;
  if (const auto* blocks = std::get_if<Q8Rows>(&source)) {
    if (whole) return kernels_.pack_blocks(*blocks, panel);
    pack_block_lanes(weight, row, count, *blocks);
    return false;
  }
  const auto& numbers = std::get<NumberRows>(source);
  const auto* values = static_cast<const char*>(numbers.values);
  const int64_t cols = numbers.cols;
  if (!is_blocks(weight.storage())) {
    const DType type = number_type(weight.storage());
    if (whole) return kernels_.pack(values, numbers.row_bytes(), numbers.type, count, cols, type, panel);
    return pack_lanes(kernels_, weight, row, count, numbers, worker_scratch<char>(worker, weight.panel_bytes()));
  }
  if (whole) return kernels_.pack_quantized(values, numbers.row_bytes(), numbers.type, cols, panel);
  const int64_t blocks = q8_blocks(cols);
  auto* scales = worker_scratch<uint16_t>(worker, count * (blocks + (cols + 1) / 2));
  auto* codes = reinterpret_cast<int8_t*>(scales + count * blocks);
  quantize(numbers.type, values, count, cols, codes, scales);
  pack_block_lanes(weight, row, count, {codes, scales, cols});
  return false;
}

// Returns what pack_panel does.
bool CpuBackend::pack_rows(const Weight& weight, int64_t row, int64_t count, const StoredRows& source, int worker) {
  bool good = true;
  for (int64_t index = 0; index < runs_of(row, count, kPanel); ++index) {
    const auto [begin, rows] = run_at(row, count, kPanel, index);
    good &= pack_panel(weight, begin, rows, from_row(source, begin - row), worker);
  }
  return good;
}

void CpuBackend::load(std::span<const LoadedRows> parts) {
  std::vector<int64_t> first_task = {0};  // of each part
  for (const LoadedRows& part : parts) {
    check_part(part);
    first_task.push_back(first_task.back() + runs_of(part.row, part.count, rows_at_once(*part.source)));
  }
  pool_.run(first_task.back(), [&](int64_t task, int worker) {
    const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
    const LoadedRows& part = parts[static_cast<size_t>(after - first_task.begin()) - 1];
    const auto [row, count] = run_at(part.row, part.count, rows_at_once(*part.source), task - *(after - 1));
    load_run({part.source, row, count, part.weight, part.table, part.most}, worker);
  });
}

void CpuBackend::load_run(const LoadedRows& run, int worker) {
  const TensorSource& source = *run.source;
  const size_t bytes = source.file ? static_cast<size_t>(run.count) * source.row_bytes() : 0;
  const StoredRows rows = source.read(run.row, run.count, grow(read_scratch_[worker], bytes));
  const bool good = run.weight && pack_rows(*run.weight, run.row, run.count, rows, worker);
  if (!good) check_rows(source, run.row, run.count, rows, run.most);
  if (!run.table) return;
  const auto& numbers = std::get<NumberRows>(rows);
  std::memcpy(static_cast<char*>(run.table) + run.row * numbers.row_bytes(), numbers.values,
              static_cast<size_t>(run.count * numbers.row_bytes()));
}

void CpuBackend::pack(Weight& weight, int64_t row, int64_t count, const void* numbers, DType type) {
  require(row >= 0 && count >= 0 && row + count <= weight.rows(), "pack: rows ", row, " + ", count, " of ",
          weight.rows());
  const NumberRows source{numbers, type, weight.cols()};
  pool_.run(runs_of(row, count, kPanel), [&](int64_t task, int worker) {
    const auto [begin, rows] = run_at(row, count, kPanel, task);
    pack_panel(weight, begin, rows, source.from_row(begin - row), worker);
  });
}

void CpuBackend::pack_parameters(Weight& weight, int64_t row, int64_t count, const float* device_source) {
  pack(weight, row, count, device_source, DType::f32);
}

}  // namespace at_moe
