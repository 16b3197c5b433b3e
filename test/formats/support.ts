import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ModelConfig, TensorSource } from '../../lib/descriptors.js';
import { AtMoeError, type AtMoeErrorCode } from '../../lib/errors.js';
import { fromFloat32 } from '../../lib/formats/float-types.js';
import { type LoraOptions, loraConfig } from '../../lib/formats/lora-options.js';
import { adapterTensorName, resolveTargets } from '../../lib/formats/lora-targets.js';
import type { MixtureBase, MixtureData } from '../../lib/formats/mixture-folder.js';
import type { Adapter } from '../../lib/formats/peft.js';
import { routerShapes } from '../../lib/formats/router-file.js';
import { parseRoutingOptions } from '../../lib/routing-options.js';

function findRoot(): string {
  for (const start of [import.meta.dirname, process.cwd()]) {
    for (let dir = start; dir !== dirname(dir); dir = dirname(dir)) {
      const manifest = join(dir, 'package.json');
      if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === 'at-moe') return dir;
    }
  }
  throw new Error('the package root was not found; run the tests inside it');
}

const root = findRoot();
export const golden = join(root, 'test', 'fixtures', 'golden');
const data = join(root, '..', 'shared', 'data');

/** Skips the test when the optional folder of real models and adapters is absent. */
export function sharedData(t: TestContext): string | undefined {
  if (existsSync(data)) return data;
  t.skip(`no ${data}`);
  return undefined;
}

export function temporaryFolder(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'at-moe-formats-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export async function rejectsWith(
  promise: Promise<unknown>,
  code: AtMoeErrorCode,
  ...patterns: RegExp[]
): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof AtMoeError, `not coded: ${error}`);
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  });
}

/** A safetensors file of exactly this header text and this many zero bytes of data. */
export function rawSafetensors(path: string, header: string, dataBytes: number, declared?: bigint): void {
  const text = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(declared ?? BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, Buffer.alloc(dataBytes)]));
}

export function tensor(name: string, shape: number[], fill: number | ((i: number) => number)): TensorSource {
  const count = shape.reduce((product, size) => product * size, 1);
  const values = Float32Array.from({ length: count }, (_, i) => (typeof fill === 'number' ? fill : fill(i)));
  return { name, dtype: 'f32', shape, data: fromFloat32('f32', values) };
}

export const tinyModel: ModelConfig = {
  architecture: 'llama',
  hiddenSize: 8,
  numLayers: 2,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 4,
  intermediateSize: 12,
  vocabSize: 16,
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  ropeScaling: { type: 'default' },
  windows: [0, 0],
  qkNorm: false,
  tieWordEmbeddings: false,
  maxPositionEmbeddings: 64,
  storedType: 'f32',
};

export const tinyBase: MixtureBase = { nameOrPath: 'tiny', config: tinyModel, sha256: 'a'.repeat(64) };

export function tinyAdapter(options: LoraOptions, fill: number): Adapter {
  const config = loraConfig(options, 'tiny');
  const targets = resolveTargets(config, tinyModel, (problem) => new Error(problem));
  const modules = targets.map(({ layer, module, rank, scaling, inFeatures, outFeatures }) => ({
    layer,
    module,
    rank,
    scaling,
    a: tensor(adapterTensorName(layer, module, 'A'), [rank, inFeatures], fill),
    b: tensor(adapterTensorName(layer, module, 'B'), [outFeatures, rank], fill),
  }));
  return { config, modules };
}

/** Two groups, three experts, a general adapter; every value equals `fill`. */
export function tinyMixture(fill: number, routingOptions: Record<string, unknown> = {}): MixtureData {
  const routing = parseRoutingOptions(routingOptions, true);
  const expert = (name: string, rank: number) => ({ name, adapter: tinyAdapter({ rank }, fill) });
  return {
    groups: [
      { name: 'function', experts: [expert('diagnosis', 2), expert('triage', 3)] },
      { name: 'style', experts: [expert('formal', 1)] },
    ],
    general: expert('general', 2),
    routing,
    router: [...routerShapes([2, 1], routing, tinyModel)].map(([name, shape]) => tensor(name, shape, fill)),
  };
}
