import { z } from 'zod';
import { checkArgument } from './arguments.js';
import { linearModules, type ModelConfig, type WeightFormat } from './descriptors.js';
import { moduleShape } from './formats/model-folder.js';
import { numberType, pairBytes, storedBytes } from './formats/q8.js';

export interface MemoryOptions {
  /** Storage of the base weights; default the checkpoint's. With q8, the embedding is taken to be bf16. */
  weights?: WeightFormat;
  /** Storage of the experts; default that of the base, beside q8 bf16. */
  expertWeights?: WeightFormat;
  /** Weights are mapped from a file of packed weights (`packedCache`); default false. */
  packedCache?: boolean;
  /** Tokens in the KV cache, all sequences together; default one full context. */
  kvTokens?: number;
  /** Experts (and the general adapter) of this rank on all linear modules; default none. */
  experts?: number;
  rank?: number;
  /** Most bytes of experts on the device (loadModel); default no bound. */
  adapterBytes?: number;
  /** Micro-batch of this many tokens in training; default none. */
  trainingTokens?: number;
  /** Only layer inputs are kept in training. */
  recompute?: boolean;
}

/** Bytes on the device. */
export interface MemoryEstimate {
  model: number;
  /** Of `model`: what lies in the page cache, once for all processes that map the file of packed weights. */
  mapped: number;
  kv: number;
  experts: number;
  training: number;
  total: number;
}

const count = z.int().min(0);
const storage = z.enum(['f32', 'f16', 'bf16', 'q8']);
const shapeSchema = z.looseObject({
  hiddenSize: count,
  numLayers: count,
  numHeads: count,
  numKvHeads: count,
  headDim: count,
  intermediateSize: count,
  vocabSize: count,
  maxPositionEmbeddings: count,
  storedType: storage,
});
const schema = z.strictObject({
  weights: storage.optional(),
  expertWeights: storage.optional(),
  packedCache: z.boolean().optional(),
  kvTokens: count.optional(),
  experts: count.optional(),
  rank: z.int().min(1).optional(),
  adapterBytes: z.int().min(1).optional(),
  trainingTokens: count.optional(),
  recompute: z.boolean().optional(),
});

/**
 * Bytes a model of this shape needs, from its shapes alone: weights, keys and values, adapters, training's activations and
 * moments. Errors: TypeError, RangeError.
 */
export function estimateMemory(config: ModelConfig, options: MemoryOptions = {}): MemoryEstimate {
  checkArgument('estimateMemory: config', shapeSchema, config);
  checkArgument('estimateMemory', schema, options);
  const {
    weights = config.storedType,
    expertWeights,
    kvTokens = config.maxPositionEmbeddings,
    experts = 0,
    rank = 16,
    adapterBytes = Infinity,
    trainingTokens = 0,
  } = options;
  const shapes = linearModules.map((module) => moduleShape(config, module));
  const linears =
    shapes.reduce((sum, { outFeatures, inFeatures }) => sum + storedBytes(weights, [outFeatures, inFeatures]), 0) *
    config.numLayers;
  const numbers = numberType(weights);
  const table = [config.vocabSize, config.hiddenSize];
  const norms = (2 * config.numLayers + 1) * config.hiddenSize * 4;
  const packed = linears + storedBytes(weights, table) + storedBytes(numbers, table);
  const model = packed + norms;
  const mapped = options.packedCache ? packed : 0;
  const kv = 2 * kvTokens * config.numKvHeads * config.headDim * config.numLayers * 4;
  const perExpert =
    shapes.reduce((sum, { outFeatures, inFeatures }) => sum + rank * (outFeatures + inFeatures), 0) * config.numLayers;
  const pairs = (shape: (typeof shapes)[number]) => pairBytes(expertWeights ?? numbers, numbers, shape, experts * rank);
  const allExperts = shapes.reduce((sum, shape) => sum + pairs(shape), 0) * config.numLayers;
  const expertBytes = Math.min(allExperts, adapterBytes);
  const attention = (config.numHeads * 2 + config.numKvHeads * 2) * config.headDim;
  const kept = config.hiddenSize + attention + 2 * config.intermediateSize;
  const layers = options.recompute ? 1 : config.numLayers;
  const activations = trainingTokens * 4 * (kept * layers + config.hiddenSize * (config.numLayers + 4) + attention);
  const training = trainingTokens === 0 ? 0 : activations + perExpert * 4 * 4;
  return { model, mapped, kv, experts: expertBytes, training, total: model + kv + expertBytes + training };
}
