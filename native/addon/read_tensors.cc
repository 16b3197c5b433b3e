#include "addon/read_tensors.h"

#include <algorithm>

namespace at_moe {

namespace {

constexpr int64_t kMostElements = int64_t{1} << 46;

const Fields::Choice<DType> kNumbers[] = {{"f32", DType::f32}, {"f16", DType::f16}, {"bf16", DType::bf16}};
const Fields::Choice<Storage> kStorages[] = {
    {"f32", Storage::f32}, {"f16", Storage::f16}, {"bf16", Storage::bf16}, {"q8", Storage::q8}};

RopeScaling read_rope_scaling(const Fields& from) {
  using Type = RopeScaling::Type;
  RopeScaling scaling;
  scaling.type =
      from.choice<Type>("type", {{"default", Type::kDefault}, {"linear", Type::kLinear}, {"llama3", Type::kLlama3}});
  if (scaling.type != Type::kDefault) scaling.factor = from.number("factor");
  if (scaling.type == Type::kLlama3) {
    scaling.low_freq_factor = from.number("lowFreqFactor");
    scaling.high_freq_factor = from.number("highFreqFactor");
    scaling.original_max_position_embeddings = from.integer("originalMaxPositionEmbeddings");
  }
  return scaling;
}

AdapterSource read_adapter(const std::vector<Fields>& modules, TensorReader& reader) {
  AdapterSource adapter;
  for (const Fields& from : modules) {
    LoraSource lora;
    lora.layer = static_cast<int>(from.integer("layer"));
    lora.module = module_by_name(from.text("module"));
    lora.rank = static_cast<int>(from.integer("rank"));
    lora.scaling = static_cast<float>(from.number("scaling"));
    lora.a = reader.read(from.child("a"));
    lora.b = reader.read(from.child("b"));
    adapter.modules.push_back(std::move(lora));
  }
  return adapter;
}

// A number, or 'learned'.
bool read_learned(const Fields& from, const char* name, float& constant) {
  if (from.get(name).IsString()) {
    if (from.text(name) != "learned") from.wrong(name, "a number or 'learned'");
    return true;
  }
  constant = static_cast<float>(from.number(name));
  return false;
}

}  // namespace

TensorSource TensorReader::read(const Fields& from) {
  TensorSource source;
  source.storage = storage_of(from.choice("dtype", kNumbers));
  locate(from, source);
  return source;
}

TensorSource TensorReader::read_weight(const Fields& from) {
  TensorSource source;
  source.storage = from.choice("dtype", kStorages);
  locate(from, source);
  if (!is_blocks(source.storage)) return source;
  TensorSource scales = read(from.child("scale"));
  const std::vector<int64_t> blocks = {source.rows(), q8_blocks(source.cols())};
  if (scales.storage != Storage::f16 || scales.shape != blocks) from.wrong("scale", "f16 of one scale per block");
  source.scales = std::make_shared<const TensorSource>(std::move(scales));
  return source;
}

void TensorReader::locate(const Fields& from, TensorSource& source) {
  source.name = from.text("name");
  source.shape = from.integers("shape");
  if (source.shape.empty()) from.wrong("shape", "extents of a tensor");
  int64_t elements = 1;
  for (int64_t extent : source.shape) {
    if (extent < 1 || extent > kMostElements / elements) from.wrong("shape", "extents of a tensor");
    elements *= extent;
  }
  if (from.has("data")) {
    source.memory = std::make_shared<const std::vector<uint8_t>>(from.values<uint8_t>("data"));
    return;
  }
  const std::string path = from.text("file");
  const int64_t offset = from.integer("offset");
  if (offset < 0) from.wrong("offset", "a position in the file");
  source.offset = static_cast<size_t>(offset);
  std::shared_ptr<const MappedFile>& file = files_[path];
  if (!file) file = std::make_shared<const MappedFile>(path);
  source.file = file;
}

ModelConfig read_model_config(const Fields& from) {
  ModelConfig config;
  config.hidden_size = from.integer("hiddenSize");
  config.num_layers = from.integer("numLayers");
  config.num_heads = from.integer("numHeads");
  config.num_kv_heads = from.integer("numKvHeads");
  config.head_dim = from.integer("headDim");
  config.intermediate_size = from.integer("intermediateSize");
  config.vocab_size = from.integer("vocabSize");
  config.max_position_embeddings = from.integer("maxPositionEmbeddings");
  config.rms_norm_eps = static_cast<float>(from.number("rmsNormEps"));
  config.rope_theta = from.number("ropeTheta");
  config.rope_scaling = read_rope_scaling(from.child("ropeScaling"));
  config.windows = from.integers("windows");
  config.qk_norm = from.flag("qkNorm");
  config.tie_word_embeddings = from.flag("tieWordEmbeddings");
  const int64_t smallest =
      std::min({config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim,
                config.intermediate_size, config.vocab_size, config.max_position_embeddings});
  if (smallest < 1) from.wrong("config", "sizes of at least 1");
  if (static_cast<int64_t>(config.windows.size()) != config.num_layers) from.wrong("windows", "one number per layer");
  return config;
}

LoadOptions read_load_options(const Fields& from) {
  const LoadOptions defaults;
  LoadOptions options;
  options.weights = from.choice("weights", kStorages);
  if (from.has("expertWeights")) options.expert_weights = from.choice("expertWeights", kStorages);
  options.trainable = from.flag("trainable", false);
  options.max_batch = from.integer("maxBatch", defaults.max_batch);
  options.context_length = from.integer("contextLength", 0);
  options.kv_tokens = from.integer("kvTokens", 0);
  options.step_tokens = from.integer("stepTokens", 0);
  options.chunk_rows = from.integer("chunkRows", 0);
  if (from.has("maxQueue")) options.max_queue = from.integer("maxQueue");
  if (from.has("adapterBytes")) options.adapter_bytes = static_cast<size_t>(from.number("adapterBytes"));
  if (from.has("hostKvBytes")) options.host_kv_bytes = static_cast<size_t>(from.number("hostKvBytes"));
  options.prefix_cache = from.flag("prefixCache", defaults.prefix_cache);
  if (options.max_batch < 1) from.wrong("maxBatch", "at least 1");
  if (std::min({options.context_length, options.kv_tokens, options.step_tokens, options.chunk_rows,
                options.max_queue.value_or(0)}) < 0)
    from.wrong("contextLength", "no negative size");
  return options;
}

PackedSource read_packed(const Fields& from) {
  PackedSource packed;
  packed.file = std::make_shared<const MappedFile>(from.text("file"), MappedFile::Access::often);
  for (const Fields& section : from.list("sections")) {
    const int64_t offset = section.integer("offset"), bytes = section.integer("byteLength");
    if (offset < 0 || bytes < 0) section.wrong("offset", "a position in the file");
    packed.sections[section.text("name")] = {static_cast<size_t>(offset), static_cast<size_t>(bytes)};
  }
  return packed;
}

LoadRequest read_load_request(const Fields& descriptor, const Fields& options) {
  LoadRequest request;
  request.config = read_model_config(descriptor.child("config"));
  request.options = read_load_options(options);
  TensorReader reader;
  for (const Fields& tensor : descriptor.list("tensors")) {
    TensorSource source = reader.read_weight(tensor);
    request.tensors[source.name] = std::move(source);
  }
  if (options.has("packed")) request.packed = read_packed(options.child("packed"));
  return request;
}

RouterOptions read_router_options(const Fields& from) {
  RouterOptions options;
  options.conditional = from.choice<bool>("withinGroup", {{"conditional", true}, {"static", false}});
  options.group_top_k = static_cast<int32_t>(from.integer("groupTopK"));
  options.expert_top_k = static_cast<int32_t>(from.integer("expertTopK"));
  options.group_top_p = static_cast<float>(from.number("groupTopP"));
  options.expert_top_p = static_cast<float>(from.number("expertTopP"));
  options.group_temperature = static_cast<float>(from.number("groupTemperature"));
  options.expert_temperature = static_cast<float>(from.number("expertTemperature"));
  options.renormalize = from.flag("renormalize");
  return options;
}

MixtureSource read_mixture_source(const Fields& from) {
  MixtureSource source;
  TensorReader reader;
  source.shape.group_start = {0};
  for (int64_t experts : from.integers("groups")) {
    if (experts < 1) from.wrong("groups", "at least one expert in each group");
    source.shape.experts += static_cast<int32_t>(experts);
    source.shape.group_start.push_back(source.shape.experts);
    ++source.shape.groups;
  }
  const Napi::Value experts = from.get("experts");
  if (!experts.IsArray() || experts.As<Napi::Array>().Length() != static_cast<uint32_t>(source.shape.experts)) {
    from.wrong("experts", "the modules of every expert of the groups");
  }
  const Fields expert_lists(experts, from.path("experts"));
  for (int32_t expert = 0; expert < source.shape.experts; ++expert) {
    source.experts.push_back(read_adapter(expert_lists.list(std::to_string(expert).c_str()), reader));
  }
  if (from.has("general")) source.general = read_adapter(from.list("general"), reader);
  source.scope =
      from.choice<RoutingScope>("scope", {{"token", RoutingScope::kToken}, {"sequence", RoutingScope::kSequence}});
  source.options = read_router_options(from.child("options"));
  source.learned_balance = read_learned(from, "balance", source.balance);
  source.learned_scale = read_learned(from, "scale", source.scale);
  source.has_router = from.has("router");
  if (source.has_router) {
    for (const Fields& tensor : from.list("router")) {
      TensorSource value = reader.read(tensor);
      source.router[value.name] = std::move(value);
    }
  }
  return source;
}

}  // namespace at_moe
