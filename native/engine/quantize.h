#pragma once

#include "core/pass.h"
#include "core/tensor_source.h"
#include "engine/event.h"

namespace at_moe {

// A tensor of numbers as blocks of q8; a unit per slab of rows. Fails as check_rows does.
Pass quantize_tensor(TensorSource source, QuantizedTensor& result);

}  // namespace at_moe
