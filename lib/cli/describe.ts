import { access } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelConfig, WeightFormat } from '../descriptors.js';
import { readJson } from '../formats/json.js';
import type { LoraConfig } from '../formats/lora-targets.js';
import { readMixtureFile } from '../formats/mixture-folder.js';
import { modelDescriptor } from '../formats/model-folder.js';
import { parseAdapterConfig } from '../formats/peft-config.js';
import { storedBytes } from '../formats/q8.js';
import { readSafetensorsHeader } from '../formats/safetensors.js';
import { resolveModel } from '../hub.js';
import { estimateMemory } from '../memory.js';
import type { RoutingOptions } from '../routing-options.js';
import { formatBytes, formatCount } from '../units.js';
import { table } from './text.js';

interface AdapterDescription {
  kind: 'adapter';
  path: string;
  base: string | null;
  rank: number;
  alpha: number;
  rslora: boolean;
  targetModules: LoraConfig['targetModules'];
  layers: number[] | null;
  /** Linears with a pair. */
  pairs: number;
  /** Ranks that occur, smallest first. */
  ranks: number[];
  parameters: number;
  bytes: number;
}

interface MixtureDescription {
  kind: 'mixture';
  path: string;
  base: { nameOrPath: string; hiddenSize: number; numLayers: number };
  groups: { name: string; experts: (AdapterDescription & { name: string })[] }[];
  general: AdapterDescription | null;
  routing: RoutingOptions;
  routerParameters: number;
  parameters: number;
  bytes: number;
}

interface ModelDescription {
  kind: 'model';
  path: string;
  config: ModelConfig;
  parameters: number;
  bytes: number;
  tokenizer: boolean;
  /** Bytes on the device by storage, with a KV cache of one context. */
  memory: Record<WeightFormat, number>;
}

export type Description = AdapterDescription | MixtureDescription | ModelDescription;

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

const elements = (shape: readonly number[]) => shape.reduce((product, extent) => product * extent, 1);

async function describeAdapter(dir: string): Promise<AdapterDescription> {
  const configPath = join(dir, 'adapter_config.json');
  const config = parseAdapterConfig(configPath, await readJson(configPath));
  const tensors = [...(await readSafetensorsHeader(join(dir, 'adapter_model.safetensors'))).tensors.values()];
  const downs = tensors.filter(({ name }) => name.includes('.lora_A.'));
  return {
    kind: 'adapter',
    path: dir,
    base: config.baseModel,
    rank: config.rank,
    alpha: config.alpha,
    rslora: config.rslora,
    targetModules: config.targetModules,
    layers: config.layers,
    pairs: downs.length,
    ranks: [...new Set(downs.map(({ shape }) => shape[0] as number))].sort((a, b) => a - b),
    parameters: tensors.reduce((sum, { shape }) => sum + elements(shape), 0),
    bytes: tensors.reduce((sum, { byteLength }) => sum + byteLength, 0),
  };
}

async function describeMixture(dir: string): Promise<MixtureDescription> {
  const { base, groups, general, routing } = await readMixtureFile(dir);
  const router = [...(await readSafetensorsHeader(join(dir, 'router.safetensors'))).tensors.values()];
  const described: MixtureDescription['groups'] = [];
  for (const { name, experts } of groups) {
    const members = [];
    for (const expert of experts) {
      members.push({ name: expert, ...(await describeAdapter(join(dir, 'experts', name, expert))) });
    }
    described.push({ name, experts: members });
  }
  const generalAdapter = general === null ? null : await describeAdapter(join(dir, 'general'));
  const adapters = [...described.flatMap(({ experts }) => experts), ...(generalAdapter ? [generalAdapter] : [])];
  const routerParameters = router.reduce((sum, { shape }) => sum + elements(shape), 0);
  const routerBytes = router.reduce((sum, { byteLength }) => sum + byteLength, 0);
  return {
    kind: 'mixture',
    path: dir,
    base: { nameOrPath: base.nameOrPath, hiddenSize: base.hiddenSize, numLayers: base.numLayers },
    groups: described,
    general: generalAdapter,
    routing,
    routerParameters,
    parameters: adapters.reduce((sum, { parameters }) => sum + parameters, routerParameters),
    bytes: adapters.reduce((sum, { bytes }) => sum + bytes, routerBytes),
  };
}

async function describeModel(dir: string): Promise<ModelDescription> {
  const { descriptor } = await modelDescriptor(dir);
  const { config, tensors } = descriptor;
  const total = (weights: WeightFormat) => estimateMemory(config, { weights }).total;
  return {
    kind: 'model',
    path: dir,
    config,
    parameters: tensors.reduce((sum, { shape }) => sum + elements(shape), 0),
    bytes: tensors.reduce((sum, { shape, dtype }) => sum + storedBytes(dtype, shape), 0),
    tokenizer: await exists(join(dir, 'tokenizer.json')),
    memory: { f32: total('f32'), bf16: total('bf16'), f16: total('f16'), q8: total('q8') },
  };
}

/** What a folder holds, from its headers: no weight is read. Errors: those of reading the folder. */
export async function describe(
  folder: string,
  hub: { revision?: string; 'cache-dir'?: string; offline?: boolean },
): Promise<Description> {
  if (await exists(join(folder, 'mixture.json'))) return await describeMixture(folder);
  if (await exists(join(folder, 'adapter_config.json'))) return await describeAdapter(folder);
  const path = await resolveModel(folder, {
    ...(hub.revision !== undefined && { revision: hub.revision }),
    ...(hub['cache-dir'] !== undefined && { cacheDir: hub['cache-dir'] }),
    ...(hub.offline !== undefined && { offline: hub.offline }),
  });
  return await describeModel(path);
}

function targetsOf({ targetModules, layers }: AdapterDescription): string {
  const names = typeof targetModules === 'string' ? targetModules : targetModules.join(' ');
  return layers === null ? names : `${names}, layers ${layers.join(' ')}`;
}

const ranksOf = ({ ranks }: AdapterDescription) =>
  ranks.length > 1 ? `${ranks[0]}–${ranks.at(-1)}` : String(ranks[0] ?? '');

function renderAdapter(adapter: AdapterDescription): string {
  return table([
    ['adapter', adapter.path],
    ['base', adapter.base ?? 'not named'],
    ['rank', `${ranksOf(adapter)}, alpha ${adapter.alpha}${adapter.rslora ? ', rslora' : ''}`],
    ['targets', `${targetsOf(adapter)} (${adapter.pairs} linears)`],
    ['size', `${formatCount(adapter.parameters)} parameters, ${formatBytes(adapter.bytes)}`],
  ]);
}

function renderMixture(mixture: MixtureDescription): string {
  const { base, groups, general, routing } = mixture;
  const row = (name: string, adapter: AdapterDescription) => [
    name,
    ranksOf(adapter),
    String(adapter.alpha),
    formatCount(adapter.parameters),
    formatBytes(adapter.bytes),
    targetsOf(adapter),
  ];
  const experts = groups.flatMap((group) => group.experts.map((expert) => row(`${group.name}/${expert.name}`, expert)));
  const generalRow = general ? [row('general', general)] : [];
  const head = table([
    ['mixture', mixture.path],
    ['base', `${base.nameOrPath} (hidden_size ${base.hiddenSize}, ${base.numLayers} layers)`],
    ['groups', groups.map(({ name, experts: own }) => `${name} (${own.length})`).join(', ')],
    [
      'routing',
      Object.entries(routing)
        .map(([key, value]) => `${key}=${value}`)
        .join(' '),
    ],
    ['router', `${formatCount(mixture.routerParameters)} parameters`],
    ['size', `${formatCount(mixture.parameters)} parameters, ${formatBytes(mixture.bytes)}`],
  ]);
  return `${head}\n${table([['expert', 'rank', 'alpha', 'parameters', 'size', 'targets'], ...experts, ...generalRow])}`;
}

function renderModel({ path, config, parameters, bytes, tokenizer, memory }: ModelDescription): string {
  const windows = config.windows.filter((window) => window > 0);
  return table([
    ['model', path],
    ['architecture', config.architecture],
    ['layers', `${config.numLayers} of hidden_size ${config.hiddenSize}, intermediate_size ${config.intermediateSize}`],
    ['attention', `${config.numHeads} heads of ${config.headDim}, ${config.numKvHeads} for keys and values`],
    ['window', windows.length === 0 ? 'none' : `${windows[0]} tokens in ${windows.length} layers`],
    ['vocabulary', `${config.vocabSize}${config.tieWordEmbeddings ? ', tied head' : ''}`],
    ['context', `${config.maxPositionEmbeddings} tokens, rope ${config.ropeScaling.type}`],
    ['tokenizer', tokenizer ? 'yes' : 'no: prompts are token ids'],
    ['stored', `${formatCount(parameters)} parameters in ${config.storedType}, ${formatBytes(bytes)}`],
    [
      'in memory',
      Object.entries(memory)
        .map(([type, total]) => `${type} ${formatBytes(total)}`)
        .join(', '),
    ],
    ['', '(weights and the keys and values of one context)'],
  ]);
}

export function renderDescription(description: Description): string {
  if (description.kind === 'adapter') return renderAdapter(description);
  return description.kind === 'mixture' ? renderMixture(description) : renderModel(description);
}
