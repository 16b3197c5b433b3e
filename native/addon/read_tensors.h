// Descriptors of lib/descriptors.ts and MixtureDescriptor into what the engine takes.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "addon/fields.h"
#include "core/tensor_source.h"
#include "engine/requests.h"
#include "mixture/source.h"

namespace at_moe {

// Maps each file once. Fails with kIo when one cannot be mapped.
class TensorReader {
 public:
  TensorSource read(const Fields& from);
  // A tensor of the base, which may be of q8.
  TensorSource read_weight(const Fields& from);

 private:
  void locate(const Fields& from, TensorSource& source);

  std::map<std::string, std::shared_ptr<const MappedFile>> files_;
};

ModelConfig read_model_config(const Fields& from);
LoadRequest read_load_request(const Fields& descriptor, const Fields& options);
LoadOptions read_load_options(const Fields& from);
MixtureSource read_mixture_source(const Fields& from);
RouterOptions read_router_options(const Fields& from);

}  // namespace at_moe
