#include "addon/fields.h"

#include <cmath>

namespace at_moe {

namespace {

constexpr double kMaxSafeInteger = 9007199254740991.0;

[[noreturn]] void expected(Napi::Env env, const std::string& name, const char* what) {
  throw Napi::TypeError::New(env, concat(name, ": expected ", what));
}

}  // namespace

int64_t integer_of(const Napi::Value& value, const std::string& name) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(std::abs(number) <= kMaxSafeInteger) || number != std::trunc(number)) expected(value.Env(), name, "an integer");
  return static_cast<int64_t>(number);
}

Fields::Fields(const Napi::Value& value, std::string name) : name_(std::move(name)) {
  if (!value.IsObject()) expected(value.Env(), name_, "an object");
  object_ = value.As<Napi::Object>();
}

void Fields::wrong(const char* name, const char* what) const { expected(object_.Env(), path(name), what); }

bool Fields::has(const char* name) const {
  const Napi::Value value = get(name);
  return !value.IsUndefined() && !value.IsNull();
}

double Fields::number(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsNumber()) wrong(name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

int64_t Fields::integer(const char* name) const { return integer_of(get(name), path(name)); }

bool Fields::flag(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsBoolean()) wrong(name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string Fields::text(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsString()) wrong(name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

uint64_t Fields::seed(const char* name) const {
  if (!has(name)) return 0;
  const Napi::Value value = get(name);
  if (value.IsBigInt()) {
    bool lossless = false;
    return value.As<Napi::BigInt>().Uint64Value(&lossless);
  }
  return static_cast<uint64_t>(integer(name));
}

std::vector<Fields> Fields::list(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsArray()) wrong(name, "an array");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<Fields> items;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    items.emplace_back(array.Get(i), concat(path(name), "[", i, "]"));
  }
  return items;
}

std::vector<int64_t> Fields::integers(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsArray()) wrong(name, "an array");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<int64_t> items;
  for (uint32_t i = 0; i < array.Length(); ++i) items.push_back(integer_of(array.Get(i), path(name)));
  return items;
}

std::vector<std::string> Fields::texts(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsArray()) wrong(name, "an array");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<std::string> items;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value item = array.Get(i);
    if (!item.IsString()) wrong(name, "an array of strings");
    items.push_back(item.As<Napi::String>());
  }
  return items;
}

}  // namespace at_moe
