// The arguments, device buffers and outputs of one op called from a test. Outputs are filled with NaN before the op;
// with `pad` in the arguments, rows of matrices are that far apart and the gap is checked afterwards.
#pragma once

#include <napi.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace at_moe {

class OpCall {
 public:
  OpCall(Backend& backend, Napi::Object args);

  Backend& backend() { return backend_; }
  Napi::Env env() const { return args_.Env(); }
  Napi::Object args() const { return args_; }
  DType activation() const { return backend_.activation_type(); }
  // Of matrices that may be f32 beside 16-bit activations: so with the flag `floats`.
  DType stream() const { return flag("floats") ? DType::f32 : activation(); }

  static bool has(const Napi::Object& from, const char* name) { return !from.Get(name).IsUndefined(); }
  static double number(const Napi::Object& from, const char* name, double fallback = 0);
  static int64_t integer(const Napi::Object& from, const char* name, int64_t fallback = 0);
  static bool flag(const Napi::Object& from, const char* name, bool fallback = false);
  static std::vector<Napi::Object> list(const Napi::Object& from, const char* name);
  double number(const char* name, double fallback = 0) const { return number(args_, name, fallback); }
  bool flag(const char* name, bool fallback = false) const { return flag(args_, name, fallback); }
  int64_t integer(const char* name, int64_t fallback = 0) const { return integer(args_, name, fallback); }

  // Host values of a typed array of T; empty when absent.
  template <typename T>
  static std::vector<T> values(const Napi::Object& from, const char* name);

  // Device copies; `packed`: without padding. Absent: empty or null.
  Matrix matrix(const Napi::Object& from, const char* name, DType dtype, bool packed = false);
  Matrix matrix(const char* name, DType dtype) { return matrix(args_, name, dtype); }
  template <typename T>
  T* array(const Napi::Object& from, const char* name);
  template <typename T>
  T* array(const char* name) {
    return array<T>(args_, name);
  }

  // Device memory that is returned as Float32Array under `name`. `update` starts from the argument of that name.
  Matrix out(const std::string& name, int64_t rows, int64_t cols, DType dtype);
  Matrix update(const char* name, DType dtype);
  float* out_array(const std::string& name, int64_t count);
  float* update_array(const char* name);
  // Returns a matrix already uploaded.
  void keep(const std::string& name, const Matrix& value) { outputs_.emplace_back(name, value); }

  // What `dtype` names; f32 unless given.
  static Storage storage_of(const Napi::Object& from);

  // A weight packed from the matrix `name` (null when absent), stored as storage_of(from), or a router's.
  const Weight* weight(const Napi::Object& from, const char* name);
  const Weight* router_weight(const Napi::Object& from, const char* name);

  Napi::Object result() { return result_; }
  void download();

 private:
  template <typename Create>
  const Weight* pack(const Napi::Object& from, const char* name, Create create);
  Matrix allocate(int64_t rows, int64_t cols, DType dtype, bool packed = false);
  Napi::Value to_array(const std::string& name, const Matrix& value);

  Backend& backend_;
  Napi::Object args_, result_;
  int64_t pad_;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<std::pair<std::string, Matrix>> outputs_;
};

Storage storage_named(const std::string& name);

// One table of ops: name and what to run.
struct OpEntry {
  const char* name;
  void (*run)(OpCall& call);
};

std::vector<OpEntry> elementwise_ops();
std::vector<OpEntry> linear_ops();
std::vector<OpEntry> router_ops();
std::vector<OpEntry> training_ops();
std::vector<OpEntry> grammar_ops();

}  // namespace at_moe
