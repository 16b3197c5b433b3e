// A base model on the device.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/pass.h"
#include "model/config.h"

namespace at_moe {

// Everything a base parameter needs to be trained: its place in the arena.
struct BaseParameter {
  std::string name;                        // Hugging Face name without "model."
  int64_t offset = 0, rows = 0, cols = 0;  // vectors: rows = 1
};

class Model {
 public:
  struct Layer {
    Buffer input_norm, post_norm, q_norm, k_norm;  // f32
    std::array<std::unique_ptr<Weight>, kModules> weight;
    std::array<Buffer, kModules> bias;  // f32, empty when there is none
  };

  // `storage` is of the linears and the head; the embedding keeps the type it is read in, norms and biases are f32.
  // `trainable` (f32 storage only) keeps an f32 arena of all parameters, in the order of `parameters`.
  Model(Backend& backend, ModelConfig config, Storage storage, bool trainable);

  // Weights and embedding are read where `packed`, if there is one, maps them, and the rest from the tensors.
  // Reads the tensors in the order of their files; a unit per step of some rows of some tensors, while the next is fetched.
  // `progress` gets bytes done and in all.
  Pass load(std::map<std::string, TensorSource> tensors, std::optional<PackedSource> packed,
            std::function<void(size_t, size_t)> progress);
  // Values of a shape without a checkpoint: linears uniform in ±sqrt(3 / in_features), norms 1. For benchmarks.
  Pass load_random(uint64_t seed);

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return backend_; }
  Storage storage() const { return storage_; }
  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  const Weight& head() const { return *head_; }
  const void* embedding() const { return embedding_.as<void>(); }
  DType embedding_type() const { return embedding_type_; }
  const float* final_norm() const { return final_norm_.as<float>(); }
  const double* inverse_frequencies() const { return inverse_frequencies_.as<double>(); }
  size_t device_bytes() const { return bytes_; }
  size_t mapped_bytes() const { return mapped_bytes_; }  // of them, those of a file that is mapped
  // What a file of packed weights holds, by name; on the CPU alone.
  std::map<std::string, std::span<const uint8_t>> packed_weights();

  bool trainable() const { return static_cast<bool>(arena_); }
  const std::vector<BaseParameter>& parameters() const { return parameters_; }
  int64_t parameter_count() const { return parameter_count_; }
  float* arena() const { return arena_.as<float>(); }
  // Place of a parameter by name, -1 when the model has none such.
  int64_t parameter_offset(const std::string& name) const;
  void repack();
  // Counts the changes of the parameters.
  uint64_t version() const { return version_; }

 private:
  struct Target;
  struct Piece;
  Target target(const std::string& name);
  void prepare(const TensorSource& source);
  // All rows in the order of their files, in steps of about as many elements.
  static std::vector<std::vector<Piece>> steps(const std::map<std::string, TensorSource>& tensors);
  void place(std::span<const Piece> step);
  // Is a tensor placed by way of f32 values?
  bool is_widened(const TensorSource& source, const Target& to) const;
  void place_widened(const Piece& piece, const Target& to);
  // False for what such a file does not hold.
  bool adopt(const TensorSource& source, const PackedSource& packed);
  void adopt(const std::string& name, std::unique_ptr<Weight>& weight, const PackedSource& packed);

  Backend& backend_;
  ModelConfig config_;
  Storage storage_;
  bool trainable_;
  std::vector<Layer> layers_;
  Buffer embedding_;
  DType embedding_type_ = DType::f32;
  Buffer final_norm_, inverse_frequencies_;
  std::unique_ptr<Weight> head_;
  size_t bytes_ = 0, mapped_bytes_ = 0;
  std::vector<BaseParameter> parameters_;
  int64_t parameter_count_ = 0;
  uint64_t version_ = 0;
  Buffer arena_;
};

}  // namespace at_moe
