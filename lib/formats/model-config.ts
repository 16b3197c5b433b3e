import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import type { ModelConfig, RopeScaling, StorageType } from '../descriptors.js';
import { badFile, checkSchema, parseJson, readBytes, unsupported } from './json.js';
import { isQuantizationConfig } from './q8.js';

const architectures = ['llama', 'mistral', 'qwen2', 'qwen3'] as const;
type Architecture = (typeof architectures)[number];

const classNames: Record<Architecture, string> = {
  llama: 'LlamaForCausalLM',
  mistral: 'MistralForCausalLM',
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
};

/** What transformers assumes for keys that config.json leaves out. */
const classDefaults: Record<Architecture, { kvHeads?: number; headDim?: number; context: number }> = {
  llama: { context: 2048 },
  mistral: { kvHeads: 8, context: 131072 },
  qwen2: { kvHeads: 32, context: 32768 },
  qwen3: { kvHeads: 32, headDim: 128, context: 32768 },
};

const size = (max: number) => z.int().min(1).max(max);
const ropeSchema = z.record(z.string(), z.unknown()).nullish();

const configSchema = z.looseObject({
  hidden_size: size(1 << 20),
  num_hidden_layers: size(4096),
  num_attention_heads: size(1 << 16),
  num_key_value_heads: size(1 << 16).nullish(),
  head_dim: size(1 << 16).nullish(),
  intermediate_size: size(1 << 24),
  vocab_size: size(1 << 28),
  max_position_embeddings: size(2 ** 31 - 1).optional(),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  hidden_act: z.string().default('silu'),
  rope_theta: z.number().positive().nullish(),
  rope_scaling: ropeSchema,
  rope_parameters: ropeSchema,
  partial_rotary_factor: z.number().nullish(),
  sliding_window: size(2 ** 31 - 1).nullish(),
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.int().min(0).default(28),
  layer_types: z.array(z.string()).nullish(),
  quantization_config: z.unknown().optional(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
});
type RawConfig = z.infer<typeof configSchema>;

/** A base model's config.json: the decoder's settings, which biases its layers have, and the sha256 of the file in hex. */
export interface ModelConfigFile {
  path: string;
  config: ModelConfig;
  /** The linears are stored in 8 bits (formats/q8.ts). */
  quantized: boolean;
  attentionBias: 'none' | 'qkv' | 'qkvo';
  mlpBias: boolean;
  sha256: string;
}

function architectureOf(path: string, value: unknown): Architecture {
  const schema = z.looseObject({ model_type: z.string().optional(), architectures: z.array(z.string()).nullish() });
  const { model_type: modelType, architectures: classes } = checkSchema(path, schema, value);
  const found = architectures.find((name) => name === modelType);
  const supported = `supported are ${Object.values(classNames).join(', ')}`;
  if (!found) throw unsupported(path, `model_type ${JSON.stringify(modelType)}; ${supported}`);
  if (classes && !classes.includes(classNames[found])) {
    throw unsupported(path, `architectures ${JSON.stringify(classes)}; ${supported}`);
  }
  return found;
}

const ropeSchemas = {
  default: z.looseObject({}),
  linear: z.looseObject({ factor: z.number().positive() }),
  llama3: z.looseObject({
    factor: z.number().positive(),
    low_freq_factor: z.number().positive(),
    high_freq_factor: z.number().positive(),
    original_max_position_embeddings: z.int().positive(),
  }),
};

function ropeOf(path: string, raw: RawConfig): { ropeTheta: number; ropeScaling: RopeScaling } {
  const rope = raw.rope_parameters ?? raw.rope_scaling ?? {};
  const schema = z.looseObject({
    rope_type: z.string().nullish(),
    type: z.string().nullish(),
    rope_theta: z.number().positive().nullish(),
    partial_rotary_factor: z.number().nullish(),
  });
  const common = checkSchema(path, schema, rope);
  const type = common.rope_type ?? common.type ?? 'default';
  if ('full_attention' in rope)
    throw unsupported(path, 'rope parameters by layer type; supported is one set for all layers');
  if ((common.partial_rotary_factor ?? raw.partial_rotary_factor ?? 1) !== 1) {
    throw unsupported(path, 'partial_rotary_factor; supported is 1');
  }
  const ropeTheta = common.rope_theta ?? raw.rope_theta ?? 10000;
  if (type === 'default') return { ropeTheta, ropeScaling: { type } };
  if (type === 'linear') {
    return { ropeTheta, ropeScaling: { type, factor: checkSchema(path, ropeSchemas.linear, rope).factor } };
  }
  if (type !== 'llama3') {
    throw unsupported(path, `rope_type ${JSON.stringify(type)}; supported are default, linear, llama3`);
  }
  const llama3 = checkSchema(path, ropeSchemas.llama3, rope);
  if (llama3.high_freq_factor <= llama3.low_freq_factor) {
    throw badFile(path, 'high_freq_factor must be larger than low_freq_factor');
  }
  return {
    ropeTheta,
    ropeScaling: {
      type,
      factor: llama3.factor,
      lowFreqFactor: llama3.low_freq_factor,
      highFreqFactor: llama3.high_freq_factor,
      originalMaxPositionEmbeddings: llama3.original_max_position_embeddings,
    },
  };
}

function windowsOf(path: string, architecture: Architecture, raw: RawConfig): number[] {
  const layers = Array.from({ length: raw.num_hidden_layers }, (_, layer) => layer);
  const types = raw.layer_types;
  if (types) {
    if (types.length !== layers.length) throw badFile(path, `${types.length} layer_types for ${layers.length} layers`);
    const odd = types.find((type) => type !== 'full_attention' && type !== 'sliding_attention');
    if (odd !== undefined) {
      throw unsupported(path, `layer type ${JSON.stringify(odd)}; supported are full_attention, sliding_attention`);
    }
  }
  let windows: number[];
  if (architecture === 'llama') {
    windows = layers.map(() => 0);
  } else if (architecture === 'mistral') {
    const window = raw.sliding_window === undefined ? 4096 : (raw.sliding_window ?? 0);
    windows = layers.map(() => window);
  } else {
    const window = raw.use_sliding_window ? (raw.sliding_window === undefined ? 4096 : (raw.sliding_window ?? 0)) : 0;
    const slides = (layer: number) => (types ? types[layer] === 'sliding_attention' : layer >= raw.max_window_layers);
    windows = layers.map((layer) => (slides(layer) ? window : 0));
  }
  const contradiction =
    types?.findIndex((type, layer) => (type === 'sliding_attention') !== (windows[layer] !== 0)) ?? -1;
  if (contradiction >= 0) {
    throw badFile(
      path,
      `layer_types[${contradiction}] is ${types?.[contradiction]}, but its window is ${windows[contradiction]}`,
    );
  }
  return windows;
}

function storedTypeOf(path: string, raw: RawConfig): StorageType {
  const name = raw.dtype ?? raw.torch_dtype ?? 'float32';
  const known: Record<string, StorageType> = { float32: 'f32', float16: 'f16', bfloat16: 'bf16' };
  const type = Object.hasOwn(known, name) ? known[name] : undefined;
  if (!type) throw unsupported(path, `dtype ${JSON.stringify(name)}; supported are ${Object.keys(known).join(', ')}`);
  return type;
}

/**
 * Reads the settings out of a parsed config.json, in the spelling of transformers 4 or 5. `path` names it in errors.
 * Errors: UNSUPPORTED (what the decoder cannot do, with what it can), BAD_FILE.
 */
export function parseModelConfig(path: string, value: unknown): Omit<ModelConfigFile, 'sha256'> {
  const architecture = architectureOf(path, value);
  const raw = checkSchema(path, configSchema, value);
  const quantized = isQuantizationConfig(raw.quantization_config);
  if (raw.quantization_config !== undefined && raw.quantization_config !== null && !quantized) {
    throw unsupported(
      path,
      'quantization_config; supported are checkpoints in float32, float16, bfloat16, and what at-moe quantize writes',
    );
  }
  if (raw.hidden_act !== 'silu') {
    throw unsupported(path, `hidden_act ${JSON.stringify(raw.hidden_act)}; supported is silu`);
  }
  const defaults = classDefaults[architecture];
  const numHeads = raw.num_attention_heads;
  const numKvHeads = (raw.num_key_value_heads === undefined ? defaults.kvHeads : raw.num_key_value_heads) ?? numHeads;
  const headDim = (raw.head_dim === undefined ? defaults.headDim : raw.head_dim) ?? raw.hidden_size / numHeads;
  if (numHeads % numKvHeads !== 0) {
    throw badFile(path, `num_attention_heads ${numHeads} is no multiple of num_key_value_heads ${numKvHeads}`);
  }
  if (!Number.isInteger(headDim)) {
    throw badFile(
      path,
      `hidden_size ${raw.hidden_size} is no multiple of num_attention_heads ${numHeads}, and no head_dim`,
    );
  }
  if (headDim % 2 !== 0) throw badFile(path, `head_dim ${headDim} is odd, rotary positions need pairs`);
  const mayHaveBias = architecture === 'llama' || architecture === 'qwen3';
  return {
    path,
    config: {
      architecture,
      hiddenSize: raw.hidden_size,
      numLayers: raw.num_hidden_layers,
      numHeads,
      numKvHeads,
      headDim,
      intermediateSize: raw.intermediate_size,
      vocabSize: raw.vocab_size,
      rmsNormEps: raw.rms_norm_eps,
      ...ropeOf(path, raw),
      windows: windowsOf(path, architecture, raw),
      qkNorm: architecture === 'qwen3',
      tieWordEmbeddings: raw.tie_word_embeddings,
      maxPositionEmbeddings: raw.max_position_embeddings ?? defaults.context,
      storedType: storedTypeOf(path, raw),
    },
    quantized,
    attentionBias: architecture === 'qwen2' ? 'qkv' : mayHaveBias && raw.attention_bias ? 'qkvo' : 'none',
    mlpBias: architecture === 'llama' && raw.mlp_bias,
  };
}

/** Reads `config.json` of a model folder. Errors: NOT_FOUND, IO, BAD_FILE, UNSUPPORTED. */
export async function readModelConfig(dir: string): Promise<ModelConfigFile> {
  const path = join(dir, 'config.json');
  const bytes = await readBytes(path);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  return { ...parseModelConfig(path, parseJson(path, bytes)), sha256 };
}
