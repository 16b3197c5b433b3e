/** Plain data that lib hands to the addon: checked in TypeScript, so that native code never parses text. */

export type StorageType = 'f32' | 'f16' | 'bf16';

/** A tensor in a mapped file (`file`, `offset` from the start of the file) or in memory (`data`). Row-major, little-endian. */
export interface TensorSource {
  name: string;
  dtype: StorageType;
  shape: number[];
  file?: string;
  offset?: number;
  data?: Uint8Array;
}

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
  /** Storage type of the checkpoint's linear weights. */
  storedType: StorageType;
}

export interface ModelDescriptor {
  config: ModelConfig;
  /** Hugging Face names without the leading "model.": embed_tokens.weight, layers.0.self_attn.q_proj.weight, norm.weight, lm_head.weight … */
  tensors: TensorSource[];
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
