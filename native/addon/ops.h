// Single ops for tests: each function takes (device, arguments, threads?), runs one op and returns its outputs.
// Matrices are {rows, cols, data: Float32Array}; everything else is a number, a boolean or a typed array.
#pragma once

#include <napi.h>

namespace at_moe {

Napi::Object make_ops(Napi::Env env);

}  // namespace at_moe
