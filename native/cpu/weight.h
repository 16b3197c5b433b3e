// A weight in panels of 16 outputs, so that one vector holds one input of neighbouring outputs:
//   bf16      [rows/16][cols/2][16][2]   pairs of inputs, the form of the bf16 dot instructions
//   f16, f32  [rows/16][cols][16]
//   q8        [rows/16][cols/64]{scales [2][16] f16, values [2][8][16][4]}   two blocks of 32 inputs (core/q8.h), their
//             scales in one line in front of their lines, so that one stream is read; four inputs of an output are
//             neighbours, the form of the 8-bit dot instructions. An odd last block comes alone, behind a whole line. Bytes
//             are those of q8_panel.h.
// Rows are padded to 16, and columns to 2 in bf16 and to 32 in q8, with zeros.
#pragma once

#include <span>

#include "backend/backend.h"
#include "cpu/q8_panel.h"

namespace at_moe {

inline constexpr int64_t kPanel = 16;

// Of files of packed weights: another one for every change of what is said above.
inline constexpr const char* kPanelLayout =
    Q8Panel::kFlip ? "cpu panels of 16, q8 + 128, version 1" : "cpu panels of 16, version 1";

class CpuWeight : public Weight {
 public:
  CpuWeight(int64_t rows, int64_t cols, Storage storage, Buffer memory)
      : Weight(rows, cols, storage), memory_(std::move(memory)) {}

  static int64_t panel_bytes(int64_t cols, Storage storage) {
    switch (storage) {
      case Storage::f32: return kPanel * cols * 4;
      case Storage::f16: return kPanel * cols * 2;
      case Storage::bf16: return kPanel * ((cols + 1) / 2 * 2) * 2;
      case Storage::q8: return Q8Panel::bytes(cols);
    }
    return 0;
  }
  static size_t bytes(int64_t rows, int64_t cols, Storage storage) {
    return static_cast<size_t>((rows + kPanel - 1) / kPanel * panel_bytes(cols, storage));
  }

  size_t bytes() const override { return memory_.bytes(); }
  std::span<const uint8_t> host_bytes() const override { return {memory_.as<const uint8_t>(), memory_.bytes()}; }
  int64_t panels() const { return (rows() + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return panel_bytes(cols(), storage()); }
  char* panel(int64_t index) const { return memory_.as<char>() + index * panel_bytes(); }
  // Of a panel, where the bytes of its inputs from an even one on begin; in q8 from the start of a block.
  int64_t offset(int64_t input) const {
    return is_blocks(storage()) ? Q8Panel::bytes(input) : panel_bytes(input, storage());
  }

 private:
  Buffer memory_;
};

}  // namespace at_moe
