#include "addon/ops_call.h"

#include <cstring>

#include "core/status.h"

namespace at_moe {

namespace {

constexpr uint32_t kPoison = 0xFFFFFFFF;  // NaN in f32, and in each half of it

[[noreturn]] void wrong(const Napi::Object& from, const std::string& message) {
  throw Napi::TypeError::New(from.Env(), message);
}

template <typename T>
constexpr napi_typedarray_type array_type() {
  if constexpr (std::is_same_v<T, float>) return napi_float32_array;
  if constexpr (std::is_same_v<T, double>) return napi_float64_array;
  if constexpr (std::is_same_v<T, int32_t>) return napi_int32_array;
  if constexpr (std::is_same_v<T, uint8_t>) return napi_uint8_array;
}

}  // namespace

OpCall::OpCall(Backend& backend, Napi::Object args)
    : backend_(backend), args_(args), result_(Napi::Object::New(args.Env())), pad_(integer("pad")) {}

double OpCall::number(const Napi::Object& from, const char* name, double fallback) {
  return has(from, name) ? from.Get(name).As<Napi::Number>().DoubleValue() : fallback;
}

bool OpCall::flag(const Napi::Object& from, const char* name, bool fallback) {
  return has(from, name) ? from.Get(name).As<Napi::Boolean>().Value() : fallback;
}

int64_t OpCall::integer(const Napi::Object& from, const char* name, int64_t fallback) {
  return static_cast<int64_t>(number(from, name, static_cast<double>(fallback)));
}

std::vector<Napi::Object> OpCall::list(const Napi::Object& from, const char* name) {
  std::vector<Napi::Object> items;
  if (!has(from, name)) return items;
  const Napi::Array array = from.Get(name).As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) items.push_back(array.Get(i).As<Napi::Object>());
  return items;
}

template <typename T>
std::vector<T> OpCall::values(const Napi::Object& from, const char* name) {
  if (!has(from, name)) return {};
  const Napi::Value value = from.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != array_type<T>()) {
    wrong(from, std::string("'") + name + "' is not a typed array of the right type");
  }
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

template std::vector<float> OpCall::values<float>(const Napi::Object&, const char*);
template std::vector<double> OpCall::values<double>(const Napi::Object&, const char*);
template std::vector<int32_t> OpCall::values<int32_t>(const Napi::Object&, const char*);
template std::vector<uint8_t> OpCall::values<uint8_t>(const Napi::Object&, const char*);

Matrix OpCall::allocate(int64_t rows, int64_t cols, DType dtype, bool packed) {
  const int64_t stride = cols + (packed ? 0 : pad_);
  const size_t bytes = static_cast<size_t>(rows * stride) * size_of(dtype);
  buffers_.push_back(backend_.allocate(bytes));
  const std::vector<uint32_t> poison(bytes / sizeof(uint32_t) + 1, kPoison);
  backend_.upload(buffers_.back().as<void>(), poison.data(), bytes);
  return {buffers_.back().as<void>(), rows, cols, stride, dtype};
}

Matrix OpCall::matrix(const Napi::Object& from, const char* name, DType dtype, bool packed) {
  if (!has(from, name)) return {};
  const Napi::Object source = from.Get(name).As<Napi::Object>();
  const int64_t rows = integer(source, "rows"), cols = integer(source, "cols");
  const std::vector<float> data = values<float>(source, "data");
  if (static_cast<int64_t>(data.size()) != rows * cols) {
    wrong(from, concat("'", name, "' has ", data.size(), " values for ", rows, " x ", cols));
  }
  const Matrix value = allocate(rows, cols, dtype, packed);
  std::vector<uint16_t> narrow;
  for (int64_t n = 0; n < rows; ++n) {
    const float* row = data.data() + n * cols;
    const void* bytes = row;
    if (dtype != DType::f32) {
      narrow.resize(static_cast<size_t>(cols));
      for (int64_t j = 0; j < cols; ++j) narrow[j] = to_half_bits(dtype, row[j]);
      bytes = narrow.data();
    }
    backend_.upload(value.row_range(n, 1).data, bytes, static_cast<size_t>(cols) * size_of(dtype));
  }
  return value;
}

template <typename T>
T* OpCall::array(const Napi::Object& from, const char* name) {
  if (!has(from, name)) return nullptr;
  const std::vector<T> data = values<T>(from, name);
  buffers_.push_back(backend_.allocate(data.size() * sizeof(T) + 1));
  backend_.upload(buffers_.back().as<void>(), data.data(), data.size() * sizeof(T));
  return buffers_.back().as<T>();
}

template float* OpCall::array<float>(const Napi::Object&, const char*);
template double* OpCall::array<double>(const Napi::Object&, const char*);
template int32_t* OpCall::array<int32_t>(const Napi::Object&, const char*);

Matrix OpCall::out(const std::string& name, int64_t rows, int64_t cols, DType dtype) {
  const Matrix value = allocate(rows, cols, dtype);
  keep(name, value);
  return value;
}

Matrix OpCall::update(const char* name, DType dtype) {
  const Matrix value = matrix(name, dtype);
  if (value) keep(name, value);
  return value;
}

float* OpCall::out_array(const std::string& name, int64_t count) {
  const Matrix value = allocate(1, count, DType::f32);
  keep(name, value);
  return value.row(0);
}

float* OpCall::update_array(const char* name) {
  float* data = array<float>(name);
  if (data) keep(name, at_moe::matrix(data, 1, static_cast<int64_t>(values<float>(args_, name).size())));
  return data;
}

Storage storage_named(const std::string& name) {
  for (const Storage candidate : {Storage::f32, Storage::f16, Storage::bf16, Storage::q8}) {
    if (name == name_of(candidate)) return candidate;
  }
  fail(Code::kMismatch, "no dtype '", name, "'");
}

Storage OpCall::storage_of(const Napi::Object& from) {
  if (!has(from, "dtype")) return Storage::f32;
  return storage_named(from.Get("dtype").As<Napi::String>());
}

const Weight* OpCall::weight(const Napi::Object& from, const char* name) {
  return pack(from, name,
              [&](int64_t rows, int64_t cols) { return backend_.create_weight(rows, cols, storage_of(from)); });
}

const Weight* OpCall::router_weight(const Napi::Object& from, const char* name) {
  return pack(from, name, [&](int64_t rows, int64_t cols) { return backend_.create_router_weight(rows, cols); });
}

template <typename Create>
const Weight* OpCall::pack(const Napi::Object& from, const char* name, Create create) {
  if (!has(from, name)) return nullptr;
  const Napi::Object source = from.Get(name).As<Napi::Object>();
  const int64_t rows = integer(source, "rows"), cols = integer(source, "cols");
  const std::vector<float> data = values<float>(source, "data");
  if (static_cast<int64_t>(data.size()) != rows * cols) wrong(from, concat("'", name, "' does not fit its shape"));
  weights_.push_back(create(rows, cols));
  backend_.pack(*weights_.back(), 0, rows, data.data(), DType::f32);
  return weights_.back().get();
}

Napi::Value OpCall::to_array(const std::string& name, const Matrix& value) {
  const size_t bytes = value.rows > 0 ? static_cast<size_t>(value.rows * value.stride) * size_of(value.dtype) : 0;
  std::vector<char> host(bytes);
  backend_.download(host.data(), value.data, bytes);
  Napi::Float32Array result = Napi::Float32Array::New(env(), static_cast<size_t>(value.rows * value.cols));
  for (int64_t n = 0; n < value.rows; ++n) {
    for (int64_t j = 0; j < value.stride; ++j) {
      const int64_t element = n * value.stride + j;
      if (j < value.cols) {
        result.Data()[n * value.cols + j] = to_float(value.dtype, host.data(), element);
      } else {
        const size_t size = size_of(value.dtype);
        require(std::memcmp(host.data() + element * static_cast<int64_t>(size), &kPoison, size) == 0, "'", name,
                "': the op wrote behind row ", n);
      }
    }
  }
  return result;
}

void OpCall::download() {
  backend_.synchronize();
  for (const auto& [name, value] : outputs_) result_.Set(name, to_array(name, value));
}

}  // namespace at_moe
