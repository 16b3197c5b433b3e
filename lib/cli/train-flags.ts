import { isDeepStrictEqual } from 'node:util';
import { type LoraOptions, loraConfig } from '../formats/lora-options.js';
import type { LoraConfig } from '../formats/lora-targets.js';
import { nameProblem } from '../formats/mixture-folder.js';
import type { MixtureOptions } from '../mixture-data.js';
import type { RoutingOptions } from '../routing-options.js';
import type { TrainingOptions } from '../training/options.js';
import { exampleFlags, exampleOptions } from './example-flags.js';
import { type Flags, parseSettings, UsageError, type Values } from './flags.js';

/** What is made when there is nothing to go on from. */
export const newFlags = {
  group: { type: 'each', value: 'NAME=A,B,...', help: 'a group of experts of a new mixture; repeated for each group' },
  general: { type: 'boolean', help: 'the new mixture has a general adapter' },
  routing: {
    type: 'list',
    value: 'KEY=VALUE,...',
    help: 'routing options of the new mixture: scope, within_group, output_scale ...',
  },
  rank: { type: 'integer', help: 'of new LoRA pairs; default 8' },
  alpha: { type: 'number', help: 'lora_alpha; default the rank' },
  'target-modules': { type: 'string', value: 'A,B', help: 'linears, a regular expression, or all-linear (default)' },
  rslora: { type: 'boolean', help: 'scale by alpha / sqrt(rank)' },
} as const satisfies Flags;

export const learningFlags = {
  epochs: { type: 'integer', help: 'passes over the data; default 1' },
  steps: { type: 'integer', help: 'optimiser steps at most' },
  'learning-rate': { type: 'number', help: 'default by target: 2e-4 adapter, 1e-3 router, 1e-4 joint, 2e-5 base' },
  schedule: { type: 'string', choices: ['constant', 'linear', 'cosine'], help: 'default linear' },
  'warmup-steps': { type: 'integer', help: 'default 0' },
  'warmup-ratio': { type: 'number', help: 'warm-up as a part of all steps' },
  accumulate: { type: 'integer', help: 'micro-batches per step; default 1' },
  'batch-examples': { type: 'integer', help: 'examples per step, in as many micro-batches as they need' },
  'no-shuffle': { type: 'boolean', help: 'keep the order of the data' },
  seed: { type: 'integer', help: 'of new pairs, the order, dropout; default 0' },
  beta1: { type: 'number', help: 'AdamW; default 0.9' },
  beta2: { type: 'number', help: 'AdamW; default 0.999' },
  epsilon: { type: 'number', help: 'AdamW; default 1e-8' },
  'weight-decay': { type: 'number', help: 'AdamW; default 0' },
  'max-grad-norm': { type: 'number', help: 'clipping; default 1, 0 = none' },
  dropout: { type: 'number', help: "of the adapters' input" },
  recompute: { type: 'boolean', help: 'keep the inputs of layers only: less memory, more time' },
  'base-kl': { type: 'number', help: 'weight of KL(base || model) on completion tokens of weight 0' },
  'random-scale': { type: 'number', help: "draw an expert's strength from U(X, 1) per example" },
  'group-balance': { type: 'number', help: 'coefficient of a router loss' },
  'expert-balance': { type: 'number', help: 'coefficient of a router loss' },
  'z-loss': { type: 'number', help: 'coefficient of a router loss' },
  entropy: { type: 'number', help: 'coefficient of a router loss' },
  supervision: { type: 'number', help: 'coefficient of a router loss; rows need groups or experts' },
  ...exampleFlags,
  eval: { type: 'string', value: 'FILE', help: 'JSONL to evaluate on' },
  'eval-every': { type: 'integer', help: 'steps between evaluations; default at the end alone' },
  checkpoint: { type: 'string', value: 'DIR', help: 'folder for the state of the run' },
  'checkpoint-every': { type: 'integer', help: 'steps between checkpoints; default 500' },
  resume: { type: 'string', value: 'DIR', help: 'go on from a checkpoint, bit for bit' },
} as const satisfies Flags;

export function loraOptions(values: Values<typeof newFlags & typeof learningFlags>): LoraOptions {
  const modules = values['target-modules'];
  const names = modules !== undefined && /^\w+_proj(,\w+_proj)*$/.test(modules);
  const options = {
    rank: values.rank,
    alpha: values.alpha,
    targetModules: names ? (modules.split(',') as LoraOptions['targetModules']) : modules,
    rslora: values.rslora,
    dropout: values.dropout,
  };
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

const shapes = [
  ['rank', 'rank'],
  ['alpha', 'alpha'],
  ['target-modules', 'targetModules'],
  ['rslora', 'rslora'],
] as const;

/** The flags among those given that shape new LoRA pairs. */
export function shapeFlags(values: Values<typeof newFlags>): string[] {
  return shapes.flatMap(([flag]) => (values[flag] === undefined ? [] : [flag]));
}

/** @throws UsageError when --rank and the like ask for other pairs than those of an adapter that is there already. */
export function checkShape(values: Values<typeof newFlags & typeof learningFlags>, there: LoraConfig, where: string) {
  const asked = loraConfig(loraOptions(values));
  for (const [flag, key] of shapes) {
    if (values[flag] === undefined || isDeepStrictEqual(asked[key], there[key])) continue;
    throw new UsageError(`--${flag}: ${where}, which is there already, has ${key} ${String(there[key])}`);
  }
}

/** The groups of `--group name=a,b`. @throws UsageError */
export function groupNames(given: readonly string[]): { name: string; experts: string[] }[] {
  const groups = given.map((text) => {
    const [, name, experts] = /^([^=]+)=(.+)$/.exec(text) ?? [];
    if (name === undefined || experts === undefined) {
      throw new UsageError(`--group takes name=expert,expert, not ${JSON.stringify(text)}`);
    }
    return { name, experts: experts.split(',') };
  });
  const problem = groups.length > 0 ? nameProblem({ groups, general: null }) : undefined;
  if (problem) throw new UsageError(`--group: ${problem}`);
  return groups;
}

export function mixtureOptions(values: Values<typeof newFlags & typeof learningFlags>): MixtureOptions {
  const lora = loraOptions(values);
  const groups = groupNames(values.group ?? []).map(({ name, experts }) => [
    name,
    Object.fromEntries(experts.map((expert) => [expert, lora])),
  ]);
  return {
    groups: Object.fromEntries(groups),
    ...(values.general && { general: lora }),
    ...(values.routing && { routing: parseSettings('routing', values.routing) as Partial<RoutingOptions> }),
    seed: values.seed,
  };
}

export function trainingOptions(values: Values<typeof learningFlags>, signal: AbortSignal): TrainingOptions {
  if (values['eval-every'] !== undefined && values.eval === undefined)
    throw new UsageError('--eval-every needs --eval');
  if (values['checkpoint-every'] !== undefined && values.checkpoint === undefined) {
    throw new UsageError('--checkpoint-every needs --checkpoint');
  }
  const balance = {
    groupBalance: values['group-balance'],
    expertBalance: values['expert-balance'],
    zLoss: values['z-loss'],
    entropy: values.entropy,
    supervision: values.supervision,
  };
  const balanced = Object.values(balance).some((value) => value !== undefined);
  return {
    ...exampleOptions(values),
    epochs: values.epochs,
    steps: values.steps,
    learningRate: values['learning-rate'],
    schedule: values.schedule as TrainingOptions['schedule'],
    warmupSteps: values['warmup-steps'],
    warmupRatio: values['warmup-ratio'],
    accumulate: values.accumulate,
    batchExamples: values['batch-examples'],
    shuffle: values['no-shuffle'] ? false : undefined,
    seed: values.seed,
    beta1: values.beta1,
    beta2: values.beta2,
    epsilon: values.epsilon,
    weightDecay: values['weight-decay'],
    maxGradNorm: values['max-grad-norm'],
    dropout: values.dropout,
    recompute: values.recompute,
    baseKl: values['base-kl'],
    randomScale: values['random-scale'],
    balance: balanced ? balance : undefined,
    evaluation: values.eval === undefined ? undefined : { data: values.eval, every: values['eval-every'] },
    checkpoint:
      values.checkpoint === undefined ? undefined : { dir: values.checkpoint, every: values['checkpoint-every'] },
    resume: values.resume,
    signal,
  };
}
