/** Plain data that lib hands to the addon: checked in TypeScript, so that native code never parses text. */

/** Types of stored numbers. */
export type StorageType = 'f32' | 'f16' | 'bf16';

/** How linear weights are held: as numbers, or as q8: int8 in blocks of 32 that share an f16 scale, 8.5 bits a weight. */
export type WeightFormat = StorageType | 'q8';

/** A tensor in a mapped file (`file`, `offset` from the start of the file) or in memory (`data`). Row-major, little-endian. */
export interface TensorSource {
  name: string;
  dtype: StorageType;
  shape: number[];
  file?: string;
  offset?: number;
  data?: Uint8Array;
}

/** A weight [rows, cols] of 8 bits: its bytes are int8, `scale` is [rows, ceil(cols / 32)] of f16. */
export interface QuantizedSource extends Omit<TensorSource, 'dtype'> {
  dtype: 'q8';
  scale: TensorSource;
}

export type WeightSource = TensorSource | QuantizedSource;

export type RopeScaling =
  | { type: 'default' }
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    };

/** What the decoder needs of config.json, in one spelling for all architectures. */
export interface ModelConfig {
  architecture: 'llama' | 'mistral' | 'qwen2' | 'qwen3';
  hiddenSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  intermediateSize: number;
  vocabSize: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  /** Per layer: number of keys a token sees, itself included; 0 = all. */
  windows: number[];
  qkNorm: boolean;
  tieWordEmbeddings: boolean;
  maxPositionEmbeddings: number;
  /** Of the checkpoint's linear weights. */
  storedType: WeightFormat;
}

export interface ModelDescriptor {
  config: ModelConfig;
  /** Hugging Face names without the leading "model.": embed_tokens.weight, layers.0.self_attn.q_proj.weight, norm.weight, lm_head.weight … */
  tensors: WeightSource[];
}

export const linearModules = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
export type LinearModule = (typeof linearModules)[number];

/** One LoRA pair: a [rank, in], b [out, rank]; scaling = alpha / rank, or alpha / sqrt(rank) with rslora. */
export interface AdapterModule {
  layer: number;
  module: LinearModule;
  rank: number;
  scaling: number;
  a: TensorSource;
  b: TensorSource;
}
