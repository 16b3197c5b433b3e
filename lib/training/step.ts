import { abortReason } from '../abort.js';
import type { TrainingStep } from '../data/packing.js';
import { AtMoeError } from '../errors.js';
import type { MicroBatchResult } from '../native-training-types.js';
import type { NativeEngine } from '../native-types.js';
import { type BatchPlan, type BatchTotals, batchTotals, engineBatch } from './batch.js';

/** Sums over the micro-batches of a step, which are the step's means. */
export type StepLosses = Omit<MicroBatchResult, 'badSequence'>;

export interface StepResult extends StepLosses {
  /** Global norm before clipping. */
  gradientNorm: number;
  /** Tokens of the step, prompts included. */
  tokens: number;
}

export interface StepArguments {
  engine: NativeEngine;
  trainer: number;
  /** Number of the step, counted from 1; for messages. */
  number: number;
  learningRate: number;
  plan: BatchPlan;
  signal?: AbortSignal;
}

function add(sum: StepLosses, part: StepLosses): StepLosses {
  const { routerLosses: a } = sum;
  const { routerLosses: b } = part;
  return {
    loss: sum.loss + part.loss,
    kl: sum.kl + part.kl,
    auxiliary: sum.auxiliary + part.auxiliary,
    routerLosses: {
      groupBalance: a.groupBalance + b.groupBalance,
      expertBalance: a.expertBalance + b.expertBalance,
      zLoss: a.zLoss + b.zLoss,
      entropy: a.entropy + b.entropy,
      supervision: a.supervision + b.supervision,
    },
  };
}

const nothing: StepLosses = {
  loss: 0,
  kl: 0,
  auxiliary: 0,
  routerLosses: { groupBalance: 0, expertBalance: 0, zLoss: 0, entropy: 0, supervision: 0 },
};

async function accumulate(step: TrainingStep, totals: BatchTotals, args: StepArguments): Promise<StepLosses> {
  const { engine, trainer, number, plan, signal } = args;
  let losses = nothing;
  for (const batch of step.microBatches) {
    signal?.throwIfAborted();
    const { badSequence, ...part } = await engine.microBatch(trainer, engineBatch(batch, totals, plan), { signal });
    if (badSequence >= 0) {
      const message = `the loss of step ${number} is not finite in ${batch.sources[badSequence]}; nothing was updated`;
      throw new AtMoeError('ERR_AT_MOE_NOT_FINITE', message);
    }
    losses = add(losses, part);
  }
  signal?.throwIfAborted();
  return losses;
}

/**
 * One optimiser step: the gradients of its micro-batches, then the update. Without an update the gradients are dropped:
 * after an abort (throws the signal's reason) and a loss or gradient that is not finite (ERR_AT_MOE_NOT_FINITE).
 */
export async function learnStep(step: TrainingStep, args: StepArguments): Promise<StepResult> {
  const { engine, trainer, learningRate, signal } = args;
  const totals = batchTotals(step.microBatches);
  try {
    const losses = await accumulate(step, totals, args);
    const gradientNorm = await engine.finishStep(trainer, learningRate);
    return { ...losses, gradientNorm, tokens: totals.tokens };
  } catch (error) {
    // The error that stopped the step says more than one of an engine that is gone.
    await engine.discardGradients(trainer).catch(() => undefined);
    throw abortReason(error, signal);
  }
}
