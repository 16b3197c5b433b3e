// Packed panels as cpu/weight.h lays them out, made and read one value at a time.
#pragma once

#include "cpu/weight.h"
#include "test/kernels/check.h"

namespace at_moe::cpu {

inline constexpr Storage kStorages[] = {Storage::f32, Storage::f16, Storage::bf16, Storage::q8};
inline constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

// The bytes of value (output, input) in a panel of numbers.
void store_number(DType type, float value, int64_t output, int64_t input, char* panel);
// Those of integer (output, input), and of the scale of its block, in a panel of q8.
void store_code(int8_t code, int64_t output, int64_t input, char* panel);
void store_scale(uint16_t scale, int64_t output, int64_t input, char* panel);

struct Panels {
  int64_t cols = 0, panel_bytes = 0;
  Bytes bytes;
  Floats values;              // [16 panels][cols]
  std::vector<int8_t> codes;  // as values, of q8
  Floats scales;              // [16 panels][q8_blocks(cols)]

  const char* panel(int64_t index) const { return bytes.data() + index * panel_bytes; }
  float value(int64_t output, int64_t input) const { return values[static_cast<size_t>(output * cols + input)]; }
};

// Of random values.
Panels make_panels(Storage storage, int64_t panels, int64_t cols, uint32_t seed);

}  // namespace at_moe::cpu
