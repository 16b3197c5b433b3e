import { execFile } from 'node:child_process';
import { mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { ModelConfig, StorageType, TensorSource } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { bytesPerElement, fromFloat32 } from '../formats/float-types.js';
import { expectedTensors, tensorKey, writeModel } from '../formats/model-folder.js';
import { numberType } from '../formats/q8.js';
import { formatBytes } from '../units.js';
import { linearWeights } from './floors.js';
import type { LoadMeasurement } from './load-child.js';
import { type BenchOptions, checkMemory, randomPool } from './setup.js';
import { checkFits, shapes } from './shapes.js';
import { timing } from './statistics.js';

export interface LoadReport extends LoadMeasurement {
  kind: 'load';
  shape: string;
  weights: string;
  threads: number;
  /** Peak resident bytes of the loading process over the bytes of the packed model; Node itself included. */
  peak_over_packed: number;
  /** Loads, each in a process of its own, after one that does not count; times and rates are the medians of them. */
  steps: number;
  /** Bytes of the checkpoint per second; a temporary one was just written, so it comes from the page cache. */
  bytes_per_second: number;
  /** Bytes per second when as many threads copy the checkpoint into fresh memory, measured after each load. */
  limit: number;
  /** The median of the loads' own fractions. */
  limit_fraction: number;
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

async function measure(
  dir: string,
  { weights, threads, device, signal }: BenchOptions,
  packed?: string,
): Promise<LoadMeasurement> {
  const child = fileURLToPath(new URL('./load-child.js', import.meta.url));
  const args = [child, dir, weights, String(threads), device, ...(packed === undefined ? [] : [packed])];
  try {
    const { stdout } = await promisify(execFile)(process.execPath, args, { signal });
    return JSON.parse(stdout) as LoadMeasurement;
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new AtMoeError('ERR_AT_MOE_INTERNAL', `loading failed: ${stderr?.trim()}`, { cause: error });
  }
}

async function measurePacked(dir: string, options: BenchOptions): Promise<LoadReport['packed']> {
  const parent = await mkdtemp(join(tmpdir(), 'at-moe-bench-'));
  const file = join(parent, 'packed');
  try {
    const { save_seconds } = await measure(dir, options, file);
    const runs: LoadMeasurement[] = [];
    for (let step = 0; step < options.steps; step++) runs.push(await measure(dir, options, file));
    const { median } = timing(runs.map((run) => run.seconds));
    return { seconds: median, save_seconds, mapped_bytes: runs[0]?.mapped_bytes ?? 0 };
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

/** Loads a checkpoint of the shape, or the given folder's, in a process of its own. */
export async function benchLoad(options: BenchOptions & { packedCache: boolean }): Promise<LoadReport> {
  const { shape, config, weights, threads, steps, packedCache } = options;
  const temporary = Object.hasOwn(shapes, shape);
  checkMemory({ ...options, experts: 0 });
  if (temporary) await checkDisk(config, numberType(weights));
  const parent = temporary ? await mkdtemp(join(tmpdir(), 'at-moe-bench-')) : undefined;
  try {
    const dir = parent ? join(parent, 'model') : shape;
    if (parent) await writeRandomModel(dir, config, numberType(weights));
    // One that does not count: it brings the checkpoint into the page cache, and touches the memory that the others take.
    await measure(dir, options);
    const runs: LoadMeasurement[] = [];
    for (let step = 0; step < steps; step++) runs.push(await measure(dir, options));
    const median = (value: (run: LoadMeasurement) => number) => timing(runs.map(value)).median;
    const [first] = runs as [LoadMeasurement];
    const peak = median((run) => run.peak_bytes);
    const seconds = median((run) => run.seconds);
    const limit = median((run) => run.copy_rate);
    return {
      kind: 'load',
      shape,
      weights,
      threads,
      steps,
      ...first,
      seconds,
      peak_bytes: peak,
      copy_rate: limit,
      peak_over_packed: peak / first.packed_bytes,
      bytes_per_second: first.checkpoint_bytes / seconds,
      limit,
      limit_fraction: median((run) => run.checkpoint_bytes / run.seconds / run.copy_rate),
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
    `checkpoint ${formatBytes(checkpoint_bytes)} in ${seconds.toFixed(2)} s: ${(report.bytes_per_second / 1e9).toFixed(2)} GB/s `,
    `limit      ${(report.limit / 1e9).toFixed(2)} GB/s, copied into fresh memory by as many threads: load at ${(report.limit_fraction * 100).toFixed(1)} %`,
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
