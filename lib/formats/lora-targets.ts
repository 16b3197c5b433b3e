import { type LinearModule, linearModules, type ModelConfig } from '../descriptors.js';
import { modulePath, moduleShape } from './model-folder.js';
import { execAll } from './regex.js';

/** The part of PEFT's LoraConfig that says where the pairs sit and how strong they are. */
export interface LoraConfig {
  baseModel: string | null;
  rank: number;
  alpha: number;
  rslora: boolean;
  dropout: number;
  /** Names or name ends (sorted), or one regular expression for the whole module path (`model.layers.0.self_attn.q_proj`), or 'all-linear'. */
  targetModules: string[] | string;
  excludeModules: string[] | string | null;
  /** Keys are regular expressions for the end of a module path. */
  rankPattern: Record<string, number>;
  alphaPattern: Record<string, number>;
  layers: number[] | null;
  layersPattern: string[];
}

/** One LoRA pair to be: a [rank, inFeatures], b [outFeatures, rank]. */
export interface LoraTarget {
  layer: number;
  module: LinearModule;
  rank: number;
  scaling: number;
  inFeatures: number;
  outFeatures: number;
}

interface Module {
  path: string;
  linear?: { layer: number; module: LinearModule };
}

export function adapterTensorName(layer: number, module: LinearModule, side: 'A' | 'B'): string {
  return `base_model.model.model.layers.${layer}.${modulePath(module)}.lora_${side}.weight`;
}

/** The modules PEFT would walk over, under the names that patterns see. */
function modulesOf(model: ModelConfig): Module[] {
  const paths = ['model', 'model.embed_tokens', 'model.layers'];
  const modules: Module[] = paths.map((path) => ({ path }));
  for (let layer = 0; layer < model.numLayers; layer++) {
    const prefix = `model.layers.${layer}`;
    const others = ['self_attn', 'mlp', 'mlp.act_fn', 'input_layernorm', 'post_attention_layernorm'];
    if (model.qkNorm) others.push('self_attn.q_norm', 'self_attn.k_norm');
    modules.push({ path: prefix }, ...others.map((name) => ({ path: `${prefix}.${name}` })));
    for (const module of linearModules) {
      modules.push({ path: `${prefix}.${modulePath(module)}`, linear: { layer, module } });
    }
  }
  modules.push({ path: 'model.norm' }, { path: 'model.rotary_emb' }, { path: 'lm_head' });
  return modules;
}

/** Per path: is it one of the names, or does it end in one; or does the regular expression match the whole of it. */
function matches(targets: string[] | string, paths: string[]): boolean[] {
  if (typeof targets === 'string') return execAll(`^(?:${targets})$`, paths).map((found) => found !== null);
  return paths.map((path) => targets.some((target) => path === target || path.endsWith(`.${target}`)));
}

function layerMatches(config: LoraConfig, paths: string[]): boolean[] {
  const { layers } = config;
  if (layers === null || layers.length === 0 || typeof config.targetModules === 'string') return paths.map(() => true);
  const exact = new Set(config.targetModules);
  const patterns = config.layersPattern.length > 0 ? config.layersPattern : ['[^.]*'];
  const found = patterns.map((pattern) => execAll(`^(?:^|.*?\\.)${pattern}\\.(?<peftLayer>\\d+)\\.`, paths));
  return paths.map((path, i) => {
    const first = found.find((results) => results[i] !== null)?.[i];
    return exact.has(path) || (first !== undefined && layers.includes(Number(first?.at(-1))));
  });
}

const keyMatches = (key: string, paths: string[]) => execAll(`^(.*\\.)?(${key})$`, paths);

function patternValues(pattern: Record<string, number>, paths: string[], otherwise: number): number[] {
  const rows = Object.entries(pattern).map(([key, value]) => ({ value, found: keyMatches(key, paths) }));
  return paths.map((_, i) => rows.find(({ found }) => found[i] !== null)?.value ?? otherwise);
}

/** The first key of a pattern that none of the pairs' modules matches, if any. */
export function unmatchedPattern(pattern: Record<string, number>, targets: LoraTarget[]): string | undefined {
  const paths = targets.map(({ layer, module }) => `model.layers.${layer}.${modulePath(module)}`);
  return Object.keys(pattern).find((key) => keyMatches(key, paths).every((found) => found === null));
}

/**
 * The pairs a config asks for, as PEFT resolves them, in layer order. `refuse` makes the error for a config that PEFT or this package
 * cannot follow: a module that is not a decoder layer's linear one, no module at all, an expression that cannot be read.
 */
export function resolveTargets(
  config: LoraConfig,
  model: ModelConfig,
  refuse: (problem: string) => Error,
): LoraTarget[] {
  try {
    return resolve(config, model, refuse);
  } catch (error) {
    const { name, code, message } = error as NodeJS.ErrnoException;
    if (name === 'SyntaxError') throw refuse(`a pattern cannot be read: ${message}`);
    if (code === 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw refuse('a pattern takes too long to match');
    throw error;
  }
}

function resolve(config: LoraConfig, model: ModelConfig, refuse: (problem: string) => Error): LoraTarget[] {
  const allLinear = typeof config.targetModules === 'string' && config.targetModules.toLowerCase() === 'all-linear';
  const targetModules = allLinear ? [...linearModules] : config.targetModules;
  const modules = modulesOf(model);
  const paths = modules.map(({ path }) => path);
  const targeted = matches(targetModules, paths);
  const excluded = matches(config.excludeModules ?? [], paths);
  const inLayers = layerMatches({ ...config, targetModules }, paths);
  const chosen = modules.filter((_, i) => targeted[i] && !excluded[i] && inLayers[i]);
  if (chosen.length === 0) throw refuse(`target_modules ${JSON.stringify(config.targetModules)} matches no module`);
  const chosenPaths = chosen.map(({ path }) => path);
  const ranks = patternValues(config.rankPattern, chosenPaths, config.rank);
  const alphas = patternValues(config.alphaPattern, chosenPaths, config.alpha);
  return chosen.map(({ path, linear }, i) => {
    if (!linear) throw refuse(`LoRA on ${path}; supported are ${linearModules.join(', ')} of the decoder layers`);
    const rank = ranks[i] as number;
    const scaling = (alphas[i] as number) / (config.rslora ? Math.sqrt(rank) : rank);
    return { ...linear, rank, scaling, ...moduleShape(model, linear.module) };
  });
}
