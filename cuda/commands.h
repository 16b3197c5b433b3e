// What the backend was asked for and has not sent yet. Ops of a few rows join as phases the launch that is open
// (cuda/phase.h); others are launches of their own. All that their kernels read that the host knows, lies in one block of
// device memory, which `flush` sends in one copy before the launches:
//   … | arguments of launch 1 | of launch 0 | tables: counters, phases, products, segments, ids, …
//                                           ^ always at the same address
// The argument of launch n is thus the same address in every flush, and whatever differs from step to step is data: two
// flushes of the same kernels and grids are one graph (cuda/graphs.h).
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "cuda/graphs.h"
#include "cuda/phase.h"
#include "cuda/phases.h"
#include "cuda/runtime.h"
#include "cuda/staging.h"

namespace at_moe::cuda {

class Commands {
 public:
  Commands(Runtime& runtime, Staging& staging, DType activation, DeviceWork& work);
  ~Commands();
  Commands(const Commands&) = delete;
  Commands& operator=(const Commands&) = delete;

  // What is `put` after this is in the block when the next phase or launch runs.
  void make_room();
  // make_room, and what is added next joins a launch whose tiles have this shape, and maybe weights of q8.
  void open(PhaseTile tile = PhaseTile::kAny, bool has_blocks = false);
  template <typename T>
  const T* put(std::span<const T> values) {
    return static_cast<const T*>(put(values.data(), values.size_bytes()));
  }

  // A phase that writes the given matrices.
  template <typename Phase, typename... Written>
  void add(PhaseKind kind, const Phase& phase, const Written&... written) {
    add_phase(kind, phase, false, written...);
  }
  // One that writes gates of which some may be 0.
  template <typename Phase, typename... Written>
  void add_selecting(PhaseKind kind, const Phase& phase, const Written&... written) {
    add_phase(kind, phase, true, written...);
  }
  // Host bytes to device memory.
  void upload(void* device, const void* host, size_t bytes);

  template <typename Arguments>
  void launch(StepKernel kernel, const LaunchShape& shape, const Arguments& arguments) {
    static_assert(sizeof(Arguments) <= kSlotBytes);
    close();
    append({kernel, shape}, &arguments, sizeof(Arguments));
  }

  // Of the launch that is open: the last phase that writes some of the memory, or -1.
  int writer(const Matrix& matrix) const;
  bool is_selecting(int phase) const { return written_[static_cast<size_t>(phase)].selecting; }

  void flush();

  // Keeps memory that is released until nothing that was asked for uses it.
  struct Released {
    bool in_use = false;
    std::vector<Buffer> buffers;
    void take(Buffer buffer) {
      if (in_use) buffers.push_back(std::move(buffer));
    }
  };
  const std::shared_ptr<Released>& released() const { return released_; }

 private:
  static constexpr size_t kSlotBytes = 256, kSlots = 1024, kTableBytes = size_t{6} << 20;
  static constexpr int kMostPhases = 64;

  struct Range {
    const char *begin, *end;
  };
  struct Written {  // by a phase
    std::vector<Range> ranges;
    bool selecting = false;
  };

  static Range range_of(const Matrix& matrix);
  const void* put(const void* bytes, size_t size);
  void* image_of(const void* device) { return image_.data() + (static_cast<const char*>(device) - tables()); }
  char* tables() const { return block_.as<char>() + kSlots * kSlotBytes; }
  char* slot(size_t launch) const { return tables() - (launch + 1) * kSlotBytes; }
  void append(const StepLaunch& launch, const void* arguments, size_t bytes);
  void close();
  void send_block();

  template <typename Phase, typename... Matrices>
  void add_phase(PhaseKind kind, const Phase& phase, bool selecting, const Matrices&... matrices) {
    if (phase.items() == 0) return;
    if (!is_open_) open();
    add_record(kind, put(&phase, sizeof(Phase)), phase.items());
    written_.back().selecting = selecting;
    (note(matrices), ...);
  }
  void add_record(PhaseKind kind, const void* arguments, int64_t items);
  void note(const Matrix& matrix) { written_.back().ranges.push_back(range_of(matrix)); }
  void note(const std::vector<Matrix>& matrices) {
    for (const Matrix& matrix : matrices) note(matrix);
  }

  Runtime& runtime_;
  Staging& staging_;
  DType activation_;
  DeviceWork& work_;
  Buffer block_;
  std::vector<char> image_;  // of the tables
  std::vector<StepLaunch> launches_;
  Graphs graphs_;
  std::vector<std::array<char, kSlotBytes>> slots_;
  std::shared_ptr<Released> released_ = std::make_shared<Released>();

  // The launch that is open.
  bool is_open_ = false;
  PhaseTile tile_ = PhaseTile::kAny;
  bool has_blocks_ = false;
  std::vector<PhaseRecord> phases_;
  std::vector<Written> written_;
  std::array<std::array<int, 2>, 3>
      resident_blocks_{};  // of the kernel of a tile, without and with q8; 0: not asked yet
};

}  // namespace at_moe::cuda
