import { f32Source } from '../adapter-tensors.js';
import { randomBits } from '../data/random.js';
import {
  type AdapterModule,
  linearModules,
  type ModelConfig,
  type StorageType,
  type TensorSource,
  type WeightFormat,
} from '../descriptors.js';
import type { Device } from '../device.js';
import { bytesPerElement, fromFloat32 } from '../formats/float-types.js';
import { moduleShape } from '../formats/model-folder.js';
import { numberType } from '../formats/q8.js';
import { estimateMemory } from '../memory.js';
import { Model } from '../model.js';
import { ModelCore } from '../model-core.js';
import { createEngine } from '../native.js';
import type { MixtureDescriptor } from '../native-mixture-types.js';
import type { ModelInfo, NativeEngine } from '../native-types.js';
import { defaultRouterOptions } from '../routing-controls.js';
import type { MixtureShape, StepShape } from './floors.js';
import { checkFits } from './shapes.js';

export interface BenchOptions extends MixtureShape, StepShape {
  shape: string;
  config: ModelConfig;
  weights: WeightFormat;
  steps: number;
  threads: number;
  device: Device;
  signal?: AbortSignal;
}

/** Values in ±1/sqrt(d): their size, not their pattern, matters to speed, so all tensors are views of one run of them. */
export function randomPool(count: number, hiddenSize: number): Float32Array {
  const bound = 1 / Math.sqrt(hiddenSize);
  return Float32Array.from({ length: count }, (_, i) => (randomBits(1, 0, i) / 2 ** 31 - 1) * bound);
}

/** One LoRA pair on every linear, for `count` experts. */
function adapters(config: ModelConfig, count: number, rank: number, storage: StorageType): AdapterModule[][] {
  const shapes = linearModules.map((module) => ({ module, ...moduleShape(config, module) }));
  const widest = Math.max(...shapes.flatMap(({ inFeatures, outFeatures }) => [inFeatures, outFeatures]));
  const pool = fromFloat32(storage, randomPool(widest * rank, config.hiddenSize));
  const tensor = (name: string, shape: [number, number]): TensorSource => ({
    name,
    shape,
    dtype: storage,
    data: pool.subarray(0, shape[0] * shape[1] * bytesPerElement[storage]),
  });
  return Array.from({ length: count }, () =>
    Array.from({ length: config.numLayers }, (_, layer) =>
      shapes.map(({ module, inFeatures, outFeatures }) => ({
        layer,
        module,
        rank,
        scaling: 1,
        a: tensor('a', [rank, inFeatures]),
        b: tensor('b', [outFeatures, rank]),
      })),
    ).flat(),
  );
}

/** Sizes of the groups: the experts spread as evenly as they go. */
export function groupSizes({ experts, groups }: Pick<MixtureShape, 'experts' | 'groups'>): number[] {
  return Array.from(
    { length: groups },
    (_, g) => Math.floor(((g + 1) * experts) / groups) - Math.floor((g * experts) / groups),
  );
}

/** A mixture with a random router, so that every expert counts. */
export function mixtureOf({ config, weights, experts, groups, rank, expertTopK = 0 }: BenchOptions): MixtureDescriptor {
  const pool = randomPool((experts + groups) * config.hiddenSize, config.hiddenSize);
  const rows = (layer: number, stage: 'group' | 'expert', count: number) => [
    f32Source(
      `layers.${layer}.${stage}.weight`,
      [count, config.hiddenSize],
      pool.subarray(0, count * config.hiddenSize),
    ),
    f32Source(`layers.${layer}.${stage}.bias`, [count], pool.subarray(0, count)),
  ];
  const router = Array.from({ length: config.numLayers }, (_, layer) => [
    ...rows(layer, 'group', groups),
    ...rows(layer, 'expert', experts),
  ]).flat();
  return {
    groups: groupSizes({ experts, groups }),
    experts: adapters(config, experts, rank, numberType(weights)),
    scope: 'token',
    options: { ...defaultRouterOptions, expertTopK },
    balance: 1,
    scale: 1,
    router,
  };
}

/** One expert alone, as it is trained. */
export function expertOf({ config, weights, rank }: BenchOptions): MixtureDescriptor {
  return {
    groups: [1],
    experts: adapters(config, 1, rank, numberType(weights)),
    scope: 'token',
    options: defaultRouterOptions,
    balance: 1,
    scale: 1,
  };
}

/**
 * Bytes a run takes: the estimate, and the adapters' sources a second time, which the engine keeps.
 * @throws AtMoeError ERR_AT_MOE_OUT_OF_MEMORY when that is more than is free.
 */
export function checkMemory(options: BenchOptions, trainingTokens = 0): void {
  const { config, weights, expertWeights, experts, rank, batch, context, shape } = options;
  const kvTokens = batch * (context + 16);
  const sizes = { weights, kvTokens, experts, rank, trainingTokens };
  const { total } = estimateMemory(config, { ...sizes, ...(expertWeights && { expertWeights }) });
  checkFits(`${shape} in ${weights}`, total + estimateMemory(config, sizes).experts, process.availableMemory());
}

/** The public interface of an engine's model, which has no tokenizer. */
export function modelOf({ shape, config }: BenchOptions, engine: NativeEngine, info: ModelInfo): Model {
  const base = { path: shape, sha256: '', descriptor: { config, tensors: [] } };
  return new Model(new ModelCore(engine, info, base, undefined));
}

/** An engine with a random model; `work` runs with it, and it is disposed of then. */
export async function withRandomModel<T>(
  options: BenchOptions,
  work: (engine: NativeEngine, info: ModelInfo) => Promise<T>,
): Promise<T> {
  const { config, weights, expertWeights, batch, context, threads, device, signal } = options;
  const engine = createEngine({ device, ...(threads > 0 && { threads }) });
  try {
    const kvTokens = batch * (Math.ceil((context + 1) / 16) + 1) * 16;
    const storage = { weights, ...(expertWeights && { expertWeights }) };
    const limits = { ...storage, maxBatch: batch, contextLength: context + 1, kvTokens };
    return await work(engine, await engine.loadRandom(config, 1, limits, { signal }));
  } finally {
    await engine.dispose();
  }
}
