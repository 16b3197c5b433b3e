import type { ParsedTrainingOptions } from './options.js';

/** How the learning rate runs over the steps. */
export interface Schedule {
  kind: 'constant' | 'linear' | 'cosine';
  /** The highest rate. */
  learningRate: number;
  warmupSteps: number;
  /** Steps of the whole run; null where it does not matter. */
  totalSteps: number | null;
}

/**
 * The schedule of a run of `totalSteps` steps, null if that is not known.
 * Errors: TypeError when the schedule needs the number of steps and it is not known.
 */
export function resolveSchedule(options: ParsedTrainingOptions, totalSteps: number | null): Schedule {
  const kind = options.schedule ?? (totalSteps === null ? 'constant' : 'linear');
  const needsTotal = kind !== 'constant' || options.warmupRatio !== undefined;
  if (needsTotal && totalSteps === null) {
    throw new TypeError('a schedule over a stream needs to know the number of steps: give steps');
  }
  const warmupSteps = options.warmupSteps ?? Math.ceil((options.warmupRatio ?? 0) * (totalSteps ?? 0));
  return { kind, learningRate: options.learningRate, warmupSteps, totalSteps: needsTotal ? totalSteps : null };
}

/** The rate of the step after `done` steps: the formulas of transformers' get_…_schedule_with_warmup, half a cosine wave. */
export function learningRateAt(schedule: Schedule, done: number): number {
  const { kind, learningRate, warmupSteps } = schedule;
  if (done < warmupSteps) return learningRate * (done / Math.max(1, warmupSteps));
  if (kind === 'constant') return learningRate;
  const decaySteps = Math.max(1, (schedule.totalSteps as number) - warmupSteps);
  const progress = (done - warmupSteps) / decaySteps;
  const factor = kind === 'linear' ? 1 - progress : 0.5 * (1 + Math.cos(Math.PI * progress));
  return learningRate * Math.max(0, factor);
}
