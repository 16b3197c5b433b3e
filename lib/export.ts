import { readFile, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { f32Source } from './adapter-tensors.js';
import { checkArgument } from './arguments.js';
import { type AdapterModule, linearModules, type QuantizedSource, type StorageType } from './descriptors.js';
import { AtMoeError } from './errors.js';
import { fileVersions } from './formats/file-version.js';
import { fromFloat32, toFloat32 } from './formats/float-types.js';
import type { MixtureData } from './formats/mixture-folder.js';
import { modulePath, moduleShape, readCompanions, tensorKey, writeModel } from './formats/model-folder.js';
import { writeAdapter } from './formats/peft.js';
import { plainConfig, widenQ8 } from './formats/q8.js';
import { readSource, type WritableTensor } from './formats/safetensors.js';
import type { ModelCore } from './model-core.js';
import type { MixtureHandle } from './native-mixture-types.js';
import { weightSchema } from './routing-controls.js';

export interface ExportOptions {
  /** 'merged': a plain model in the base's stored types, 8-bit weights in the embedding's. 'peft': one adapter, of the ranks' sum per module. */
  as: 'merged' | 'peft';
  /** Weight of each named expert, in every layer; experts not named get 0. One at least is named. */
  weights: Record<string, number>;
}

const needed = 'a number for each expert to export, by name: an export has no router';
const schema = z.strictObject({
  as: z.enum(['merged', 'peft'], { error: 'it is "merged" or "peft"' }),
  weights: z
    .record(z.string(), weightSchema, { error: needed })
    .refine((weights) => Object.keys(weights).length > 0, { error: needed }),
});

/** Errors: TypeError, RangeError. */
export function checkExportOptions(options: ExportOptions): ExportOptions {
  return checkArgument('export', schema, options ?? {});
}

/** W' = W + Σ λρ w_e s_e B_e A_e + (1 − λ) s_p B_p A_p for every linear; all other tensors as they are. */
export async function exportMerged(
  dir: string,
  core: ModelCore,
  data: MixtureData,
  mixture: MixtureHandle,
  weights: Float32Array,
): Promise<void> {
  await checkSource(dir, core);
  const targeted = new Set(
    allAdapters(data).flatMap(({ modules }) =>
      modules.map(({ layer, module }) => `layers.${layer}.${modulePath(module)}.weight`),
    ),
  );
  const numbers = core.descriptor.tensors.find(({ name }) => name === 'embed_tokens.weight')?.dtype as StorageType;
  const tensors: WritableTensor[] = [];
  for (const tensor of core.descriptor.tensors) {
    const name = tensorKey(tensor.name);
    const { shape } = tensor;
    const dtype = tensor.dtype === 'q8' ? numbers : tensor.dtype;
    if (!targeted.has(tensor.name)) {
      if (tensor.dtype === 'q8') tensors.push({ name, dtype, shape, data: () => widened(tensor, dtype) });
      else tensors.push({ ...tensor, name });
      continue;
    }
    const layer = Number(tensor.name.split('.')[1]);
    const module = linearModules.find((candidate) =>
      tensor.name.endsWith(`.${candidate}.weight`),
    ) as AdapterModule['module'];
    const values = await core.engine.merged({ mixture, base: tensor, layer, module, weights, alone: false });
    tensors.push({ name, dtype, shape, data: fromFloat32(dtype, values) });
  }
  const config = JSON.parse(await readFile(join(core.path, 'config.json'), 'utf8')) as Record<string, unknown>;
  await writeModel(dir, plainConfig(config), tensors, await readCompanions(core.path));
}

async function widened(tensor: QuantizedSource, dtype: StorageType): Promise<Uint8Array> {
  const { scale, ...values } = tensor;
  const bytes = await Promise.all([readSource({ ...values, dtype: 'I8' }), readSource(scale)]);
  return fromFloat32(dtype, widenQ8(...bytes, tensor.shape));
}

/** The weights are read again from the model's files, which must still be those that were loaded, and stay. */
async function checkSource(dir: string, { path, files }: ModelCore): Promise<void> {
  if ((await realpath(dir).catch(() => undefined)) === (await realpath(path))) {
    throw new AtMoeError('ERR_AT_MOE_IO', `${dir} is the folder of the base model: export to another one`);
  }
  const now = await fileVersions(Object.keys(files));
  for (const [file, version] of Object.entries(files)) {
    if (now[file] !== version) {
      throw new AtMoeError('ERR_AT_MOE_MISMATCH', `${file} has changed since the model was loaded`);
    }
  }
}

function allAdapters(data: MixtureData): { modules: AdapterModule[] }[] {
  const adapters = data.groups.flatMap(({ experts }) => experts.map(({ adapter }) => adapter));
  return data.general ? [...adapters, data.general.adapter] : adapters;
}

/** λ and ρ of a layer: constants, or from the router's parameters (λ = sigmoid(balance), ρ = exp(scale)). */
function layerFactors(data: MixtureData, layer: number): { balance: number; scale: number } {
  const parameter = (name: string) => {
    const tensor = data.router.find((candidate) => candidate.name === `layers.${layer}.${name}`);
    return tensor ? (toFloat32(tensor.dtype, tensor.data as Uint8Array)[0] as number) : 0;
  };
  const { general_balance: balance, output_scale: scale } = data.routing;
  return {
    balance: balance === 'learned' ? 1 / (1 + Math.exp(-parameter('balance'))) : balance,
    scale: scale === 'learned' ? Math.exp(parameter('scale')) : scale,
  };
}

/** All experts side by side as one adapter: A stacked, B stacked with its factor, alpha = rank so that PEFT scales by 1. */
export async function exportAdapter(
  dir: string,
  core: ModelCore,
  data: MixtureData,
  weights: Float32Array,
): Promise<void> {
  const { config } = core.descriptor;
  const experts = data.groups.flatMap(({ experts: own }) => own.map(({ adapter }) => adapter));
  const modules: AdapterModule[] = [];
  const ranks: Record<string, number> = {};
  for (let layer = 0; layer < config.numLayers; layer++) {
    const { balance, scale } = layerFactors(data, layer);
    for (const module of linearModules) {
      const parts = [...experts, ...(data.general ? [data.general.adapter] : [])].flatMap((adapter, e) => {
        const own = adapter.modules.find((candidate) => candidate.layer === layer && candidate.module === module);
        const weight = e < experts.length ? balance * scale * (weights[e] as number) : 1 - balance;
        return own && weight !== 0 ? [{ own, factor: weight * own.scaling }] : [];
      });
      if (parts.length === 0) continue;
      const stacked = stack(parts, moduleShape(config, module));
      ranks[`model.layers.${layer}.${modulePath(module)}`] = stacked.rank;
      modules.push({ layer, module, ...stacked, scaling: 1 });
    }
  }
  if (modules.length === 0) throw new RangeError('export: weights: they leave nothing to export');
  const rank = Math.max(...Object.values(ranks));
  const other = Object.fromEntries(
    Object.entries(ranks)
      .filter(([, own]) => own !== rank)
      .map(([path, own]) => [`^${path.replaceAll('.', '\\.')}`, own]),
  );
  const paths = Object.keys(ranks);
  const adapterConfig = {
    baseModel: core.path,
    rank,
    alpha: rank,
    rslora: false,
    dropout: 0,
    targetModules: paths.toSorted(),
    excludeModules: null,
    rankPattern: other,
    alphaPattern: other,
    layers: null,
    layersPattern: [],
  };
  await writeAdapter(dir, { config: adapterConfig, modules }, config);
}

function stack(
  parts: { own: AdapterModule; factor: number }[],
  shape: { outFeatures: number; inFeatures: number },
): Pick<AdapterModule, 'rank' | 'a' | 'b'> {
  const { outFeatures, inFeatures } = shape;
  const rank = parts.reduce((sum, { own }) => sum + own.rank, 0);
  const a = new Float32Array(rank * inFeatures);
  const b = new Float32Array(outFeatures * rank);
  let first = 0;
  for (const { own, factor } of parts) {
    a.set(toFloat32(own.a.dtype, own.a.data as Uint8Array), first * inFeatures);
    const values = toFloat32(own.b.dtype, own.b.data as Uint8Array);
    for (let row = 0; row < outFeatures; row++) {
      for (let r = 0; r < own.rank; r++) b[row * rank + first + r] = factor * (values[row * own.rank + r] as number);
    }
    first += own.rank;
  }
  return { rank, a: f32Source('a', [rank, inFeatures], a), b: f32Source('b', [outFeatures, rank], b) };
}
