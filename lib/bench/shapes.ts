import { access } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelConfig } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { readModelConfig } from '../formats/model-config.js';

type Sizes = Pick<
  ModelConfig,
  | 'architecture'
  | 'hiddenSize'
  | 'numLayers'
  | 'numHeads'
  | 'numKvHeads'
  | 'intermediateSize'
  | 'vocabSize'
  | 'maxPositionEmbeddings'
> &
  Partial<ModelConfig>;

function shape(sizes: Sizes): ModelConfig {
  return {
    headDim: sizes.hiddenSize / sizes.numHeads,
    rmsNormEps: 1e-5,
    ropeTheta: 10000,
    ropeScaling: { type: 'default' },
    windows: Array.from({ length: sizes.numLayers }, () => 0),
    qkNorm: false,
    tieWordEmbeddings: false,
    storedType: 'bf16',
    ...sizes,
  };
}

export const shapes: Readonly<Record<string, ModelConfig>> = {
  'llama-160m': shape({
    architecture: 'llama',
    hiddenSize: 768,
    numLayers: 12,
    numHeads: 12,
    numKvHeads: 12,
    intermediateSize: 2048,
    vocabSize: 32000,
    maxPositionEmbeddings: 2048,
  }),
  'qwen2.5-0.5b': shape({
    architecture: 'qwen2',
    hiddenSize: 896,
    numLayers: 24,
    numHeads: 14,
    numKvHeads: 2,
    intermediateSize: 4864,
    vocabSize: 151936,
    maxPositionEmbeddings: 32768,
    ropeTheta: 1e6,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: true,
  }),
  'tinyllama-1.1b': shape({
    architecture: 'llama',
    hiddenSize: 2048,
    numLayers: 22,
    numHeads: 32,
    numKvHeads: 4,
    intermediateSize: 5632,
    vocabSize: 32000,
    maxPositionEmbeddings: 2048,
  }),
  'llama-3-8b': shape({
    architecture: 'llama',
    hiddenSize: 4096,
    numLayers: 32,
    numHeads: 32,
    numKvHeads: 8,
    intermediateSize: 14336,
    vocabSize: 128256,
    maxPositionEmbeddings: 8192,
    ropeTheta: 500000,
  }),
};

/** A shape by name, or that of a model folder. @throws RangeError; errors of reading config.json. */
export async function shapeOf(name: string): Promise<ModelConfig> {
  const known = Object.hasOwn(shapes, name) ? shapes[name] : undefined;
  if (known) return known;
  const isFolder = await access(join(name, 'config.json')).then(
    () => true,
    () => false,
  );
  if (!isFolder) throw new RangeError(`--shape is one of ${Object.keys(shapes).join(', ')}, or a model folder`);
  return (await readModelConfig(name)).config;
}

/** @throws AtMoeError ERR_AT_MOE_OUT_OF_MEMORY with the bytes needed and free. */
export function checkFits(what: string, needed: number, free: number): void {
  if (needed <= free) return;
  const gib = (bytes: number) => `${Math.round(bytes)} bytes (${(bytes / 2 ** 30).toFixed(1)} GiB)`;
  throw new AtMoeError('ERR_AT_MOE_OUT_OF_MEMORY', `${what} needs ${gib(needed)}, free are ${gib(free)}`);
}
