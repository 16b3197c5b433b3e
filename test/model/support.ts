import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ModelConfig, ModelDescriptor, TensorSource, WeightSource } from '../../lib/descriptors.js';
import { toFloat32 } from '../../lib/formats/float-types.js';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import { type GoldenCase, readCase } from '../../lib/golden/case.js';
import { initializeModel } from '../../lib/initialize.js';
import { Mixture } from '../../lib/mixture.js';
import { type LoadModelOptions, loadModel, Model } from '../../lib/model.js';
import { ModelCore } from '../../lib/model-core.js';
import { createEngine } from '../../lib/native.js';
import type { EngineOptions, LoadOptions } from '../../lib/native-types.js';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { golden } from '../formats/support.js';

export type Device = EngineOptions['device'];

export interface EngineSettings extends Partial<LoadOptions> {
  threads?: number;
  affinity?: number[];
}

/** Loads a folder's base with options of the engine that loadModel does not show. Disposed after the test. */
export async function loadBase(
  t: TestContext,
  dir: string,
  device: string,
  { threads, affinity, ...options }: EngineSettings = {},
): Promise<Model> {
  const [base, tokenizer] = await Promise.all([modelDescriptor(dir), Tokenizer.loadIfPresent(dir)]);
  const engine = createEngine({ device: device as Device, ...(threads && { threads }), ...(affinity && { affinity }) });
  t.after(() => engine.dispose());
  const info = await engine.loadModel(base.descriptor, { weights: base.descriptor.config.storedType, ...options });
  return new Model(new ModelCore(engine, info, { path: dir, ...base }, tokenizer));
}

export interface LoadedCase {
  golden: GoldenCase;
  model: Model;
  mixture: Mixture;
}

/** A golden case's base and mixture. */
export async function loadCase(
  t: TestContext,
  name: string,
  device: string,
  settings: EngineSettings = {},
): Promise<LoadedCase> {
  const found = await readCase(join(golden, name));
  const model = await loadBase(t, join(golden, name, 'base'), device, settings);
  return { golden: found, model, mixture: await Mixture.from(model.core, found.mixture) };
}

export function temporary(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'at-moe-model-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Folder of an expert's adapter in a golden case. */
export const expertDir = (name: string, path: string) => join(golden, name, 'experts', path);

const demoBase = new URL('../../../examples/demo/base/', import.meta.url);

/** Writes a base with random weights, a tokenizer and, unless it is to be plain, a chat template. */
export async function writeTextModel(dir: string, { plain = false } = {}): Promise<void> {
  const text = (name: string) => readFileSync(new URL(name, demoBase), 'utf8');
  const { chat_template, ...tokenizer } = JSON.parse(text('tokenizer_config.json'));
  await initializeModel(dir, JSON.parse(text('config.json')), {
    deviation: 0.3,
    files: {
      'tokenizer.json': text('tokenizer.json'),
      'tokenizer_config.json': JSON.stringify({ ...tokenizer, ...(!plain && { chat_template }) }),
    },
  });
}

/** The model of writeTextModel. */
export async function textModel(
  t: TestContext,
  device: string,
  { plain, ...options }: { plain?: boolean } & LoadModelOptions = {},
): Promise<Model> {
  const dir = join(temporary(t), 'base');
  await writeTextModel(dir, plain === undefined ? {} : { plain });
  const model = await loadModel(dir, { device: device as Device, threads: 1, ...options });
  t.after(() => model.dispose());
  return model;
}

/** Greedy, past end-of-sequence tokens, with log-probabilities: what is compared bit for bit. */
export const exact = { maxTokens: 10, ignoreEos: true, logProbs: true } as const;

export function bits(result: { tokens: number[]; logProbs?: number[] }): object {
  return { tokens: result.tokens, logProbs: result.logProbs };
}

/** A tensor of numbers. */
export function numbers(source: WeightSource | undefined): TensorSource {
  assert.ok(source && source.dtype !== 'q8');
  return source;
}

/** The tensors of a descriptor of numbers, in memory. */
export function inMemory(descriptor: ModelDescriptor): { config: ModelConfig; tensors: TensorSource[] } {
  const files = new Map<string, Buffer>();
  const load = (tensor: TensorSource): TensorSource => {
    const { file, offset = 0, ...rest } = tensor;
    if (!file) return tensor;
    const bytes = files.get(file) ?? readFileSync(file);
    files.set(file, bytes);
    const count = tensor.shape.reduce((product, size) => product * size, 1);
    const width = tensor.dtype === 'f32' ? 4 : 2;
    return { ...rest, data: Uint8Array.from(bytes.subarray(offset, offset + count * width)) };
  };
  return { config: descriptor.config, tensors: descriptor.tensors.map((tensor) => load(numbers(tensor))) };
}

/** The values of a tensor in memory, as a copy. */
export function valuesOf({ dtype, data }: TensorSource): Float32Array {
  return Float32Array.from(toFloat32(dtype, data as Uint8Array));
}

/** Largest difference relative to the largest expected value. */
export function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let [most, scale] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    scale = Math.max(scale, Math.abs(expected[i] as number));
    const error = Math.abs((actual[i] as number) - (expected[i] as number));
    most = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(most, error);
  }
  return most / (scale || 1);
}
