// Strict reading of JS values: a wrong type throws TypeError naming the field.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "core/status.h"

namespace at_moe {

// Object or field that is read, and its name for messages.
class Fields {
 public:
  Fields(const Napi::Value& value, std::string name);

  bool has(const char* name) const;
  Napi::Value get(const char* name) const { return object_.Get(name); }
  Fields child(const char* name) const { return Fields(get(name), path(name)); }

  double number(const char* name) const;
  double number(const char* name, double fallback) const { return has(name) ? number(name) : fallback; }
  int64_t integer(const char* name) const;
  int64_t integer(const char* name, int64_t fallback) const { return has(name) ? integer(name) : fallback; }
  bool flag(const char* name) const;
  bool flag(const char* name, bool fallback) const { return has(name) ? flag(name) : fallback; }
  std::string text(const char* name) const;
  uint64_t seed(const char* name) const;  // number or bigint; absent: 0

  std::vector<Fields> list(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;  // of a plain array
  std::vector<std::string> texts(const char* name) const;
  // Copy of a typed array; absent: empty.
  template <typename T>
  std::vector<T> values(const char* name) const {
    if (!has(name)) return {};
    const Napi::Value value = get(name);
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != array_type<T>())
      wrong(name, array_name<T>());
    const Napi::TypedArrayOf<T> array = value.As<Napi::TypedArrayOf<T>>();
    return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
  }
  template <typename T>
  std::vector<T> required_values(const char* name) const {
    if (!has(name)) wrong(name, array_name<T>());
    return values<T>(name);
  }

  // The value whose name is given.
  template <typename E>
  struct Choice {
    const char* name;
    E value;
  };
  template <typename E, size_t N>
  E choice(const char* name, const Choice<E> (&choices)[N]) const {
    const std::string given = text(name);
    for (const Choice<E>& one : choices) {
      if (given == one.name) return one.value;
    }
    wrong(name, "one of the names it may have");
  }

  [[noreturn]] void wrong(const char* name, const char* expected) const;
  std::string path(const char* name) const { return name_.empty() ? name : name_ + "." + name; }

 private:
  template <typename T>
  static napi_typedarray_type array_type() {
    if constexpr (std::is_same_v<T, float>) return napi_float32_array;
    if constexpr (std::is_same_v<T, double>) return napi_float64_array;
    if constexpr (std::is_same_v<T, int32_t>) return napi_int32_array;
    if constexpr (std::is_same_v<T, uint8_t>) return napi_uint8_array;
  }
  template <typename T>
  static const char* array_name() {
    if constexpr (std::is_same_v<T, float>) return "a Float32Array";
    if constexpr (std::is_same_v<T, double>) return "a Float64Array";
    if constexpr (std::is_same_v<T, int32_t>) return "an Int32Array";
    if constexpr (std::is_same_v<T, uint8_t>) return "a Uint8Array";
  }

  Napi::Object object_;
  std::string name_;
};

// A whole number of JS.
int64_t integer_of(const Napi::Value& value, const std::string& name);

}  // namespace at_moe
