import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { AdapterModule } from '../../lib/descriptors.js';
import type { Device } from '../../lib/device.js';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import { createEngine } from '../../lib/native.js';
import type { MixtureDescriptor } from '../../lib/native-mixture-types.js';
import type { MicroBatch } from '../../lib/native-training-types.js';
import type { GenerateRequest, LoadOptions, NativeEngine, SequenceEvent } from '../../lib/native-types.js';
import { defaultRouterOptions } from '../../lib/routing-controls.js';

const root = fileURLToPath(new URL('../../..', import.meta.url));
export const goldenBase = join(root, 'test', 'fixtures', 'golden', 'llama-token-dense', 'base');

export async function openEngine(options: Partial<LoadOptions> = {}, device = 'cpu'): Promise<NativeEngine> {
  const base = await modelDescriptor(goldenBase);
  const engine = createEngine({ device: device as Device, threads: 1 });
  await engine.loadModel(base.descriptor, { weights: 'f32', ...options });
  return engine;
}

export const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1 };

export type Done = Extract<SequenceEvent, { type: 'done' }>;
export type Trace = Extract<SequenceEvent, { type: 'trace' }>;

export interface Generation {
  id: number;
  tokens: number[];
  traces: Trace[];
  done: Promise<Done>;
}

export function startGeneration(
  engine: NativeEngine,
  request: Partial<GenerateRequest>,
  onToken?: (token: number) => void,
): Generation {
  const tokens: number[] = [];
  const traces: Trace[] = [];
  let end: (event: Done) => void;
  const done = new Promise<Done>((resolve) => {
    end = resolve;
  });
  const defaults: GenerateRequest = {
    ids: Int32Array.of(1, 2, 3),
    maxTokens: 8,
    stopTokens: new Int32Array(),
    sampling: greedy,
    routing: { kind: 'base' },
  };
  const id = engine.generate({ ...defaults, ...request }, (event) => {
    if (event.type === 'done') return end(event);
    if (event.type === 'trace') return void traces.push(event);
    tokens.push(event.token);
    onToken?.(event.token);
  });
  return { id, tokens, traces, done };
}

/** A rank-2 pair for q_proj of each layer, values from a fixed pattern. */
export function adapterModules(layers: number, hiddenSize: number, outputs: number, phase: number): AdapterModule[] {
  const source = (name: string, shape: [number, number]) => {
    const values = Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => 0.05 * Math.sin(i * 0.7 + phase));
    return { name, dtype: 'f32' as const, shape, data: new Uint8Array(values.buffer) };
  };
  return Array.from({ length: layers }, (_, layer) => ({
    layer,
    module: 'q_proj' as const,
    rank: 2,
    scaling: 2,
    a: source(`layers.${layer}.a`, [2, hiddenSize]),
    b: source(`layers.${layer}.b`, [outputs, 2]),
  }));
}

/** Two groups of two experts; the router's scores follow from small patterns, the experts' values from `phase`. */
export async function mixtureDescriptor(
  scope: 'token' | 'sequence',
  router = true,
  phase = 0,
): Promise<MixtureDescriptor> {
  const { config } = (await modelDescriptor(goldenBase)).descriptor;
  const outputs = config.numHeads * config.headDim;
  const tensor = (name: string, shape: number[]) => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => 0.3 * Math.cos(i * 1.3));
    return { name, dtype: 'f32' as const, shape, data: new Uint8Array(values.buffer) };
  };
  const layers = Array.from({ length: config.numLayers }, (_, layer) => [
    tensor(`layers.${layer}.group.weight`, [2, config.hiddenSize]),
    tensor(`layers.${layer}.expert.weight`, [4, config.hiddenSize]),
  ]);
  return {
    groups: router ? [2, 2] : [1],
    experts: Array.from({ length: router ? 4 : 1 }, (_, e) =>
      adapterModules(config.numLayers, config.hiddenSize, outputs, phase + e),
    ),
    scope,
    options: defaultRouterOptions,
    balance: 1,
    scale: 1,
    ...(router && { router: layers.flat() }),
  };
}

export function microBatch(sequences: number, length: number): MicroBatch {
  const rows = sequences * length;
  const ids = Int32Array.from({ length: rows }, (_, i) => (i * 7) % 90);
  const labels = Int32Array.from({ length: rows }, (_, i) => ((i + 1) % length === 0 ? -100 : (ids[i + 1] ?? -100)));
  return {
    ids,
    offsets: Int32Array.from({ length: sequences + 1 }, (_, i) => i * length),
    promptLengths: new Int32Array(sequences).fill(2),
    labels,
    stepLossWeight: sequences * (length - 1),
    stepTokens: rows,
  };
}
