import { z } from 'zod';
import { checkArgument } from '../arguments.js';
import { type LinearModule, linearModules, type ModelConfig } from '../descriptors.js';
import { type LoraConfig, type LoraTarget, resolveTargets, unmatchedPattern } from './lora-targets.js';

/** How a fresh expert is made; the names and meanings are those of PEFT's LoraConfig. */
export interface LoraOptions {
  /** Default 8. */
  rank?: number;
  /** Default: `rank`. */
  alpha?: number;
  /** 'all-linear' (default), modules by name, or a regular expression for whole paths like `model.layers.0.self_attn.q_proj`. */
  targetModules?: 'all-linear' | LinearModule[] | string;
  /** alpha / sqrt(rank) instead of alpha / rank. Default false. */
  rslora?: boolean;
  /** In training only. Default 0. */
  dropout?: number;
  /** Ranks and alphas of single modules, by regular expressions for the end of their path. */
  rankPattern?: Record<string, number>;
  alphaPattern?: Record<string, number>;
  /** Only these layers (not with a regular expression). */
  layers?: number[];
}

const rank = z.int().min(1).max(65536);
const alpha = z.number().positive().max(1e6);
const schema = z.strictObject({
  rank: rank.default(8),
  alpha: alpha.optional(),
  targetModules: z.union([z.string().min(1), z.array(z.enum(linearModules)).min(1)]).default('all-linear'),
  rslora: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
  rankPattern: z.record(z.string(), rank).default({}),
  alphaPattern: z.record(z.string(), alpha).default({}),
  layers: z.array(z.int().min(0)).min(1).optional(),
});

/** Fills in the defaults. Errors: TypeError, RangeError. `baseModel` is what adapter_config.json will name as the base. */
export function loraConfig(options: LoraOptions, baseModel: string | null = null): LoraConfig {
  const { layers, targetModules, ...rest } = checkArgument('LoRA options', schema, options);
  const isRegex = typeof targetModules === 'string' && targetModules !== 'all-linear';
  if (isRegex && layers) throw new TypeError('LoRA options: layers cannot be given with a regular expression');
  return {
    ...rest,
    alpha: rest.alpha ?? rest.rank,
    baseModel,
    targetModules: isRegex
      ? targetModules
      : [...(targetModules === 'all-linear' ? linearModules : targetModules)].sort(),
    excludeModules: null,
    layers: layers ?? null,
    layersPattern: [],
  };
}

/** The pairs of a fresh expert, in layer order: shapes, rank and scaling of each. Errors: TypeError, RangeError. */
export function resolveLora(options: LoraOptions, model: ModelConfig): LoraTarget[] {
  const config = loraConfig(options);
  const beyond = config.layers?.find((layer) => layer >= model.numLayers);
  if (beyond !== undefined)
    throw new RangeError(`LoRA options: layer ${beyond} of a model of ${model.numLayers} layers`);
  const targets = resolveTargets(config, model, (problem) => new TypeError(`LoRA options: ${problem}`));
  for (const name of ['rankPattern', 'alphaPattern'] as const) {
    const unmatched = unmatchedPattern(config[name], targets);
    if (unmatched !== undefined)
      throw new RangeError(`LoRA options: ${name} ${JSON.stringify(unmatched)} matches no module of the adapter`);
  }
  return targets;
}
