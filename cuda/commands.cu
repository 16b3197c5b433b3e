#include "cuda/commands.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "cuda/upload.cuh"

namespace at_moe::cuda {

namespace {

constexpr size_t kAlign = 16;  // of what is put

}  // namespace

Commands::Commands(Runtime& runtime, Staging& staging, DType activation, DeviceWork& work)
    : runtime_(runtime),
      staging_(staging),
      activation_(activation),
      work_(work),
      block_(runtime.allocate(kSlots * kSlotBytes + kTableBytes)),
      graphs_(runtime, work) {
  image_.reserve(kTableBytes);
}

Commands::~Commands() { released_->in_use = false; }

void Commands::make_room() {
  if (image_.size() > kTableBytes / 2 || launches_.size() + 2 > kSlots) flush();
}

void Commands::open(PhaseTile tile, bool has_blocks) {
  make_room();
  const bool other_tile = tile != PhaseTile::kAny && tile_ != PhaseTile::kAny && tile != tile_;
  if (is_open_ && (other_tile || phases_.size() >= kMostPhases)) close();
  if (tile != PhaseTile::kAny) tile_ = tile;
  has_blocks_ |= has_blocks;
  is_open_ = true;
}

const void* Commands::put(const void* bytes, size_t size) {
  const size_t at = (image_.size() + kAlign - 1) / kAlign * kAlign;
  require(at + size <= kTableBytes, "an op needs ", size, " bytes of tables");
  released_->in_use = true;
  image_.resize(at + size);
  if (size) std::memcpy(image_.data() + at, bytes, size);
  return tables() + at;
}

Commands::Range Commands::range_of(const Matrix& matrix) {
  const auto* begin = static_cast<const char*>(matrix.data);
  if (matrix.rows == 0) return {begin, begin};
  const int64_t elements = (matrix.rows - 1) * matrix.stride + matrix.cols;
  return {begin, begin + elements * static_cast<int64_t>(size_of(matrix.dtype))};
}

int Commands::writer(const Matrix& matrix) const {
  const Range range = range_of(matrix);
  const auto overlaps = [&](const Range& other) { return other.begin < range.end && range.begin < other.end; };
  for (size_t phase = written_.size(); phase-- > 0;) {
    const std::vector<Range>& ranges = written_[phase].ranges;
    if (std::any_of(ranges.begin(), ranges.end(), overlaps)) return static_cast<int>(phase);
  }
  return -1;
}

void Commands::add_record(PhaseKind kind, const void* arguments, int64_t items) {
  const int32_t first = phases_.empty() ? 0 : phases_.back().first + phases_.back().items;
  require(items + first <= INT32_MAX, "a launch of too many items");
  phases_.push_back({kind, first, static_cast<int32_t>(items), arguments});
  written_.emplace_back();
}

void Commands::upload(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  open();
  const Matrix target = matrix(device, 1, static_cast<int64_t>((bytes + sizeof(float) - 1) / sizeof(float)));
  const auto* from = static_cast<const char*>(put(host, bytes));
  auto* to = static_cast<char*>(device);
  const int last = static_cast<int>(phases_.size()) - 1;
  if (last >= 0 && phases_.back().kind == PhaseKind::kUpload && writer(target) < last) {
    Upload& upload = *static_cast<Upload*>(image_of(phases_.back().arguments));
    if (upload.count < Upload::kMost) {
      upload.add(from, to, static_cast<int64_t>(bytes));
      phases_.back().items = static_cast<int32_t>(upload.items());
      note(target);
      return;
    }
  }
  Upload upload{};
  upload.add(from, to, static_cast<int64_t>(bytes));
  add(PhaseKind::kUpload, upload, target);
}

void Commands::append(const StepLaunch& launch, const void* arguments, size_t bytes) {
  std::memcpy(slots_.emplace_back().data(), arguments, bytes);
  launches_.push_back(launch);
}

void Commands::close() {
  if (!is_open_) return;
  is_open_ = false;
  const PhaseTile tile = std::exchange(tile_, PhaseTile::kAny);
  const bool has_blocks = std::exchange(has_blocks_, false);
  const std::vector<PhaseRecord> phases = std::exchange(phases_, {});
  written_.clear();
  if (phases.empty()) return;
  const std::vector<uint32_t> counters(phases.size() + 1);
  PhaseList list{};
  list.phases = put(std::span<const PhaseRecord>(phases));
  list.count = static_cast<int32_t>(phases.size());
  list.items = phases.back().first + phases.back().items;
  list.counters = const_cast<uint32_t*>(put(std::span<const uint32_t>(counters)));
  const PhaseKernel with = phase_kernel(activation_, tile, has_blocks);
  int& blocks = resident_blocks_[static_cast<size_t>(tile)][has_blocks];
  if (blocks == 0) {
    const auto* kernel = reinterpret_cast<const void*>(with.kernel);
    blocks = runtime_.resident_blocks(kernel, kPhaseThreads, with.shared_bytes);
  }
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kPhaseThreads), with.shared_bytes};
  append({with.kernel, shape}, &list, sizeof(list));
}

void Commands::send_block() {
  const size_t slot_bytes = slots_.size() * kSlotBytes, bytes = slot_bytes + image_.size();
  char* host = staging_.take(bytes).host;
  for (size_t i = 0; i < slots_.size(); ++i) {
    std::memcpy(host + slot_bytes - (i + 1) * kSlotBytes, slots_[i].data(), kSlotBytes);
  }
  std::memcpy(host + slot_bytes, image_.data(), image_.size());
  ++work_.uploads;
  runtime_.upload_async(slot(slots_.size() - 1), host, bytes);
  slots_.clear();
  image_.clear();
}

void Commands::flush() {
  close();
  if (launches_.empty()) return;
  const std::vector<StepLaunch> launches = std::exchange(launches_, {});
  released_->in_use = false;
  const std::vector<Buffer> released = std::exchange(released_->buffers, {});  // freed at the end
  send_block();
  work_.launches += launches.size();
  const auto enqueue = [&] {
    for (size_t i = 0; i < launches.size(); ++i) {
      cuda::launch(runtime_.stream(), launches[i].shape, launches[i].kernel, slot(i));
    }
  };
  if (const Graph* graph = graphs_.find(launches, enqueue)) runtime_.replay(*graph);
  else enqueue();
}

}  // namespace at_moe::cuda
