/**
 * What a step must do at least, from shapes alone. B sequences, C tokens of context, d hidden size, L layers, V
 * vocabulary, E experts of rank r in G groups, all on all seven linears [out, in] of a layer.
 *   P = L Σ out·in           R = L S r Σ (out + in)           Q = L (G + E) d
 * S: experts that a row selects, all E unless the router keeps the `expertTopK` best of each group.
 */
import { linearModules, type ModelConfig, type WeightFormat } from '../descriptors.js';
import { bytesPerElement } from '../formats/float-types.js';
import { moduleShape } from '../formats/model-folder.js';
import { numberType, pairBytes, storedBytes } from '../formats/q8.js';

export interface MixtureShape {
  experts: number;
  groups: number;
  rank: number;
  /** Experts kept of each group; default 0 = all. */
  expertTopK?: number;
  /** Storage of the experts; default that of the base, beside q8 bf16. */
  expertWeights?: WeightFormat;
}

/** Sequences of a step, and the tokens of each: context in decoding, rows in prefill and training. */
export interface StepShape {
  batch: number;
  context: number;
}

/** The base's share of a step, and what the mixture adds to it. */
export interface Work {
  base: number;
  added: number;
}

function layerSums(config: ModelConfig) {
  const shapes = linearModules.map((module) => moduleShape(config, module));
  return {
    products: shapes.reduce((sum, { outFeatures, inFeatures }) => sum + outFeatures * inFeatures, 0),
    widths: shapes.reduce((sum, { outFeatures, inFeatures }) => sum + outFeatures + inFeatures, 0),
  };
}

/** P: weights of the decoder's linears. */
export function linearWeights(config: ModelConfig): number {
  return config.numLayers * layerSums(config).products;
}

/** Bytes of the decoder's linears and of the head. */
function weightBytes(config: ModelConfig, weights: WeightFormat): number {
  const shapes = linearModules.map((module) => moduleShape(config, module));
  const layer = shapes.reduce(
    (sum, { outFeatures, inFeatures }) => sum + storedBytes(weights, [outFeatures, inFeatures]),
    0,
  );
  return config.numLayers * layer + storedBytes(weights, [config.vocabSize, config.hiddenSize]);
}

/** S: experts of a row; groups are of one size, give or take one. */
function selectedExperts({ experts, groups, expertTopK = 0 }: MixtureShape): number {
  return expertTopK === 0 ? experts : Math.min(experts, groups * expertTopK);
}

/** R: weights of the experts that a row selects. */
export function expertWeights(config: ModelConfig, mixture: MixtureShape): number {
  return config.numLayers * selectedExperts(mixture) * mixture.rank * layerSums(config).widths;
}

/** Bytes of R. */
function expertBytes(config: ModelConfig, weights: WeightFormat, mixture: MixtureShape): number {
  const numbers = numberType(weights);
  const ranks = selectedExperts(mixture) * mixture.rank;
  const layer = linearModules.reduce(
    (sum, module) => sum + pairBytes(mixture.expertWeights ?? numbers, numbers, moduleShape(config, module), ranks),
    0,
  );
  return config.numLayers * layer;
}

/** Q: weights of the routers. */
export function routerWeights(config: ModelConfig, { experts, groups }: MixtureShape): number {
  return config.numLayers * (experts + groups) * config.hiddenSize;
}

/** Keys a row at this 0-based position sees, summed over the layers. */
function keysSeen(config: ModelConfig, position: number): number {
  return config.windows.reduce((sum, window) => sum + (window > 0 ? Math.min(window, position + 1) : position + 1), 0);
}

function keysOfSequence(config: ModelConfig, tokens: number): number {
  let sum = 0;
  for (let position = 0; position < tokens; position++) sum += keysSeen(config, position);
  return sum;
}

/**
 * Bytes read by one decode step:
 *   base   (P + V d) · storage + B · keys · 2 · kv_heads · head_dim · kv type       added   R · storage + 4 Q
 * The router is f32, experts have a storage of their own; a sequence reads the keys of its context and its own.
 */
export function decodeBytes(
  config: ModelConfig,
  weights: WeightFormat,
  mixture: MixtureShape,
  { batch, context }: StepShape,
  kvBytes: number,
): Work {
  const keys = batch * keysSeen(config, context);
  const cache = keys * 2 * config.numKvHeads * config.headDim * kvBytes;
  return {
    base: weightBytes(config, weights) + cache,
    added: expertBytes(config, weights, mixture) + routerWeights(config, mixture) * 4,
  };
}

/** Multiply-adds of causal attention in the forward pass of one sequence: q·k and p·v, head_dim each, per head and key. */
function attentionForward(config: ModelConfig, tokens: number): number {
  return 2 * keysOfSequence(config, tokens) * config.numHeads * config.headDim;
}

/**
 * Multiply-adds of one prefill of B sequences of C tokens, of whose rows only the last goes through the head:
 *   base   B (C P + attention + V d)       added   B C (R + Q)
 */
export function prefillProducts(config: ModelConfig, mixture: MixtureShape, { batch, context }: StepShape): Work {
  const rows = batch * context;
  const head = config.vocabSize * config.hiddenSize;
  return {
    base: rows * linearWeights(config) + batch * (attentionForward(config, context) + head),
    added: rows * (expertWeights(config, mixture) + routerWeights(config, mixture)),
  };
}

/** Linears of layer 0 whose input is the embedding: nothing trainable lies below them. */
function firstInputs(config: ModelConfig) {
  const shapes = (['q_proj', 'k_proj', 'v_proj'] as const).map((module) => moduleShape(config, module));
  return {
    products: shapes.reduce((sum, { outFeatures, inFeatures }) => sum + outFeatures * inFeatures, 0),
    inputs: shapes.reduce((sum, { inFeatures }) => sum + inFeatures, 0),
  };
}

/** Forward and backward of the frozen base: 2 P, less the input gradients of layer 0's q, k, v; attention three times. */
function trainBase(config: ModelConfig, { batch, context }: StepShape, labelled: number): number {
  const rows = batch * context;
  const linears = rows * (2 * linearWeights(config) - firstInputs(config).products);
  return linears + 3 * batch * attentionForward(config, context) + 2 * labelled * config.vocabSize * config.hiddenSize;
}

/**
 * Multiply-adds of one training step with `labelled` rows through the head, what can be kept not computed twice:
 *   expert   base + 3 rows R(E = 1)            h = A x, B h; u = Bᵀ g, Aᵀ u; dA, dB
 *   router   base + rows (2 R + 3 Q)           the same without dA, dB; scores, dW, dz
 * each less the input gradients of layer 0's q, k, v (and of its router). Attention's backward is twice its forward.
 */
export function trainProducts(
  config: ModelConfig,
  mixture: MixtureShape,
  step: StepShape,
  labelled: number,
): { expert: number; router: number } {
  const rows = step.batch * step.context;
  const base = trainBase(config, step, labelled);
  const one = { ...mixture, experts: 1, groups: 1 };
  const { inputs } = firstInputs(config);
  const rank = mixture.rank;
  const routerRows = (mixture.experts + mixture.groups) * config.hiddenSize;
  const router = 2 * expertWeights(config, mixture) - selectedExperts(mixture) * rank * inputs;
  return {
    expert: base + rows * (3 * expertWeights(config, one) - rank * inputs),
    router: base + rows * (router + 3 * routerWeights(config, mixture) - routerRows),
  };
}

/**
 * Bytes that one training step on a CPU needs at once; N rows, H heads of size h and
 * K of keys, I intermediate size, s bytes of a stored number:
 *   W = (P + V d) · storage + V d s + 4 (2 L + 1) d           the base
 *   X = 4 N (L (2 d + (2 H + 2 K) h + H + 2 I) + d)           what backward reads: the inputs of a layer and of its MLP,
 *                                                             q, k, v, attention and its log-sums, gate and up; and the end
 *   expert   W + R(E = 1) (s + 16) + X + 4 N L 7 r            packed, f32 parameters, gradients, two moments; A x
 *   router   W + R s + 20 Q + X + 4 N L (7 E r + G + E)       the same of the router alone; its scores
 * The gradients of activations, which live for a layer, are not counted, nor are logits.
 */
export function trainLiveBytes(
  config: ModelConfig,
  weights: WeightFormat,
  mixture: MixtureShape,
  { batch, context }: StepShape,
): { expert: number; router: number } {
  const { hiddenSize, numLayers, numHeads, numKvHeads, headDim, intermediateSize, vocabSize } = config;
  const rows = batch * context;
  const number = bytesPerElement[numberType(weights)];
  const norms = 4 * (2 * numLayers + 1) * hiddenSize;
  const base = weightBytes(config, weights) + vocabSize * hiddenSize * number + norms;
  const layer = 2 * hiddenSize + (2 * numHeads + 2 * numKvHeads) * headDim + numHeads + 2 * intermediateSize;
  const kept = base + 4 * rows * (numLayers * layer + hiddenSize);
  const modules = linearModules.length;
  const { experts, groups, rank } = mixture;
  const all = { ...mixture, expertTopK: 0 };
  const one = { experts: 1, groups: 1, rank };
  const scores = modules * experts * rank + groups + experts;
  return {
    expert:
      kept +
      expertBytes(config, weights, one) +
      16 * expertWeights(config, one) +
      4 * rows * numLayers * modules * rank,
    router: kept + expertBytes(config, weights, all) + 20 * routerWeights(config, all) + 4 * rows * numLayers * scores,
  };
}
