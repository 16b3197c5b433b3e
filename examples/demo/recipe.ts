/** How the demo trains: found by trying, and written down in docs/experiments/composition-recipe.md with what failed. */
import type { ExampleRow, RoutingOptions, TrainingOptions } from '../../lib/index.js';
import { type Example, type Factor, factors, levels } from './task.js';

export const lora = { rank: 8, alpha: 16 };

/** Experts of each group, in order. */
export const groups = Object.fromEntries(
  factors.map((factor) => [factor, Object.fromEntries(levels[factor].map((level) => [level, lora]))]),
);

export const batchExamples = 16;

/**
 * An expert sees all other factors vary. It learns the span its factor owns; on the others it is held to the base by a KL
 * term. Its strength is drawn anew for every example, because it will act at a fraction of it in the mixture.
 */
export function expertTraining(steps: number, seed: number): TrainingOptions {
  return {
    steps,
    learningRate: 3e-3,
    schedule: 'linear',
    warmupSteps: 10,
    batchExamples,
    baseKl: 1,
    randomScale: 1 / 3,
    seed,
  };
}

export function routerTraining(steps: number, seed: number): TrainingOptions {
  return { steps, learningRate: 5e-2, schedule: 'linear', batchExamples, balance: { supervision: 1 }, seed };
}

/** The general adapter learns whole answers of every compound. */
export function generalTraining(steps: number, seed: number): TrainingOptions {
  return { steps, learningRate: 3e-3, schedule: 'linear', warmupSteps: 10, batchExamples, seed };
}

/** A row whose loss is on one factor's span alone. */
export function expertRow({ prompt, completion, spans }: Example, factor: Factor): ExampleRow {
  const [start, end] = spans[factor];
  const weight = [
    { start: 0, end: start, weight: 0 },
    { start: end, end: completion.length, weight: 0 },
  ].filter((span) => span.end > span.start);
  return { prompt, completion, weight };
}

/** A row with the labels of its compound; `flat`: all experts are in one group. */
export function routerRow({ prompt, completion, experts }: Example, flat: boolean): ExampleRow {
  const names = flat ? experts.map((path) => `experts/${path.split('/')[1]}`) : experts;
  return { prompt, completion, experts: names };
}

export interface Variant {
  label: string;
  flat?: boolean;
  general?: boolean;
  /** Its routing is printed at the end. */
  shown?: boolean;
  routing: Partial<RoutingOptions>;
}

const scope = 'sequence';

/** What is compared. */
export const variants: Variant[] = [
  { label: 'flat one-stage router, scale 1', flat: true, routing: { scope, output_scale: 1 } },
  { label: 'flat one-stage router, scale 2', flat: true, routing: { scope, output_scale: 2 } },
  { label: 'grouped, static, scale 2', routing: { scope, within_group: 'static', output_scale: 2 } },
  { label: 'grouped, conditional, scale 1', routing: { scope, output_scale: 1 } },
  { label: 'grouped, conditional, scale 2', shown: true, routing: { scope, output_scale: 2 } },
  { label: 'grouped, conditional, learned scale', routing: { scope, output_scale: 'learned' } },
  {
    label: 'grouped, scale 2, general adapter',
    general: true,
    routing: { scope, output_scale: 2, general_balance: 0.8 },
  },
];
