import { mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelConfig, StorageType, TensorSource } from '../descriptors.js';
import { bytesPerElement, fromFloat32 } from '../formats/float-types.js';
import { expectedTensors, tensorKey, writeModel } from '../formats/model-folder.js';
import { numberType } from '../formats/q8.js';
import { formatBytes } from '../units.js';
import { linearWeights } from './floors.js';
import type { LoadMeasurement, LoadRound } from './load-child.js';
import { measureInChild } from './measure-child.js';
import { type BenchOptions, checkMemory, randomPool } from './setup.js';
import { checkFits, shapes } from './shapes.js';
import { median, percent } from './statistics.js';

export interface LoadReport extends Omit<LoadMeasurement, 'rounds'> {
  kind: 'load';
  shape: string;
  weights: string;
  threads: number;
  /** Peak resident bytes of the loading process over the bytes of the packed model; Node itself included. */
  peak_over_packed: number;
  /** Loads after one that does not count, in turns with copies; times and rates are their medians. */
  steps: number;
  seconds: number;
  /** Of all threads of the process during a load. */
  processor_seconds: number;
  /** Bytes of the checkpoint per second; a temporary one was just written, so it comes from the page cache. */
  bytes_per_second: number;
  /** Bytes per second when as many threads copy the checkpoint's files into fresh memory. */
  limit: number;
  /** The median of the loads' fractions, each against the copies before and after it. */
  limit_fraction: number;
  /** The same in processor time: what a load must do over what it does, however busy the machine is. */
  limit_fraction_processor: number;
  /** With `packedCache`: loads that map the file of packed weights, and the one time that it was written. */
  packed?: { seconds: number; save_seconds: number; mapped_bytes: number };
}

function configJson(config: ModelConfig, storage: StorageType): Record<string, unknown> {
  const dtypes = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };
  return {
    model_type: config.architecture,
    hidden_size: config.hiddenSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    intermediate_size: config.intermediateSize,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositionEmbeddings,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: dtypes[storage],
  };
}

/** A checkpoint of the shape; all tensors hold the same run of random values. */
async function writeRandomModel(dir: string, config: ModelConfig, storage: StorageType): Promise<void> {
  const attentionBias = config.architecture === 'qwen2' ? 'qkv' : 'none';
  const expected = [...expectedTensors({ path: dir, config, attentionBias, mlpBias: false })];
  const elements = (shape: number[]) => shape.reduce((product, extent) => product * extent, 1);
  const run = randomPool(1 << 20, config.hiddenSize);
  const pool = new Float32Array(Math.max(...expected.map(([, shape]) => elements(shape))));
  for (let at = 0; at < pool.length; at += run.length) pool.set(run.subarray(0, pool.length - at), at);
  const bytes = fromFloat32(storage, pool);
  const tensors = expected.map(
    ([name, shape]): TensorSource => ({
      name: tensorKey(name),
      shape,
      dtype: storage,
      data: bytes.subarray(0, elements(shape) * bytesPerElement[storage]),
    }),
  );
  await writeModel(dir, configJson(config, storage), tensors);
}

async function checkDisk(config: ModelConfig, storage: StorageType): Promise<void> {
  const tables = (config.tieWordEmbeddings ? 1 : 2) * config.vocabSize * config.hiddenSize;
  const needed = (linearWeights(config) + tables) * bytesPerElement[storage];
  const { bavail, bsize } = await statfs(tmpdir());
  checkFits(`the temporary model in ${tmpdir()}`, needed, bavail * bsize);
}

function measure(
  dir: string,
  rounds: number,
  { weights, threads, device, signal }: BenchOptions,
  packed?: string,
): Promise<LoadMeasurement> {
  const args = [dir, weights, String(threads), device, String(rounds), ...(packed === undefined ? [] : [packed])];
  return measureInChild<LoadMeasurement>('load-child.js', args, signal);
}

async function measurePacked(dir: string, options: BenchOptions): Promise<LoadReport['packed']> {
  const parent = await mkdtemp(join(tmpdir(), 'at-moe-bench-'));
  const file = join(parent, 'packed');
  try {
    const { save_seconds } = await measure(dir, 1, options, file);
    const { rounds, mapped_bytes } = await measure(dir, options.steps, options, file);
    return { seconds: median(rounds.map((round) => round.seconds)), save_seconds, mapped_bytes };
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

/** Of the loads after the first, which brings the checkpoint into the page cache. */
export function loadSpeed(rounds: readonly LoadRound[], checkpointBytes: number) {
  const loads = rounds.slice(1);
  const fraction = (load: (round: LoadRound) => number, copy: (round: LoadRound) => number) =>
    median(loads.map((round, i) => (copy(rounds[i] as LoadRound) + copy(round)) / 2 / load(round)));
  const seconds = median(loads.map((round) => round.seconds));
  return {
    seconds,
    processor_seconds: median(loads.map((round) => round.processor_seconds)),
    bytes_per_second: checkpointBytes / seconds,
    limit: median(rounds.map(({ copy }) => copy.bytes / copy.seconds)),
    limit_fraction: fraction(
      (round) => round.seconds,
      (round) => round.copy.seconds,
    ),
    limit_fraction_processor: fraction(
      (round) => round.processor_seconds,
      (round) => round.copy.processorSeconds,
    ),
  };
}

/** Loads a checkpoint of the shape, or the given folder's, in a process of its own, in turns with copies of its files. */
export async function benchLoad(options: BenchOptions & { packedCache: boolean }): Promise<LoadReport> {
  const { shape, config, weights, threads, steps, packedCache } = options;
  const temporary = Object.hasOwn(shapes, shape);
  checkMemory({ ...options, experts: 0 });
  if (temporary) await checkDisk(config, numberType(weights));
  const parent = temporary ? await mkdtemp(join(tmpdir(), 'at-moe-bench-')) : undefined;
  try {
    const dir = parent ? join(parent, 'model') : shape;
    if (parent) await writeRandomModel(dir, config, numberType(weights));
    const { rounds, ...measured } = await measure(dir, steps + 1, options);
    return {
      kind: 'load',
      shape,
      weights,
      threads,
      steps,
      ...measured,
      peak_over_packed: measured.peak_bytes / measured.packed_bytes,
      ...loadSpeed(rounds, measured.checkpoint_bytes),
      ...(packedCache && { packed: await measurePacked(dir, options) }),
    };
  } finally {
    if (parent) await rm(parent, { recursive: true, force: true });
  }
}

export function loadText(report: LoadReport): string {
  const { shape, weights, seconds, packed_bytes, peak_bytes, baseline_bytes, checkpoint_bytes, packed } = report;
  return [
    `load ${shape} as ${weights}, ${report.device}`,
    `checkpoint ${formatBytes(checkpoint_bytes)} in ${seconds.toFixed(2)} s: ${(report.bytes_per_second / 1e9).toFixed(2)} GB/s`,
    `limit      ${(report.limit / 1e9).toFixed(2)} GB/s, copied into fresh memory by as many threads: load at ${percent(report.limit_fraction)}, in processor time ${percent(report.limit_fraction_processor)}`,
    `packed     ${formatBytes(packed_bytes)}; peak resident ${formatBytes(peak_bytes)}, ${formatBytes(baseline_bytes)} of it before loading`,
    `peak       ${report.peak_over_packed.toFixed(3)} of the packed size`,
    ...(packed
      ? [
          `cache      ${formatBytes(packed.mapped_bytes)} mapped in ${packed.seconds.toFixed(2)} s, written once in ${packed.save_seconds.toFixed(2)} s`,
        ]
      : []),
    '',
  ].join('\n');
}
