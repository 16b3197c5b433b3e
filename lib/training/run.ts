import { joinSignals, onAbort, orAborted } from '../abort.js';
import type { ExampleSource } from '../data/rows.js';
import type { TrainOptions } from '../native-training-types.js';
import type { BatchPlan } from './batch.js';
import {
  type Checkpoint,
  checkCheckpointFolder,
  checkResumable,
  loadCheckpoint,
  type RunIdentity,
  type RunPosition,
  saveCheckpoint,
} from './checkpoint.js';
import type { TrainingContext } from './context.js';
import { type EvaluationResult, type EvaluationSet, evaluateTrainer, readEvaluationSet } from './evaluate.js';
import { type ParsedTrainingOptions, parseTrainingOptions, type TrainingOptions } from './options.js';
import { learningRateAt, resolveSchedule, type Schedule } from './schedule.js';
import { openSource, StepFeed, type StepSource, shuffles } from './source.js';
import { learnStep, type StepResult } from './step.js';

export type { TrainingContext } from './context.js';
export { type EvaluationResult, evaluateLoss } from './evaluate.js';

/** After one optimiser step. */
export interface TrainingProgress {
  /** Steps done, those before a resumed checkpoint included. */
  step: number;
  /** Null for a stream without a given number of steps. */
  totalSteps: number | null;
  /** Epochs done, fractional; 0 within a stream of unknown length. */
  epoch: number;
  /** What the step minimised: the language model's loss plus `auxiliary`. */
  loss: number;
  /** Σ coefficient · loss of all other losses. */
  auxiliary: number;
  /** Each without its coefficient, in nats where it is one: the mean over the step before its update. */
  losses: {
    languageModel: number;
    /** With `baseKl` only. */
    baseKl?: number;
    /** These with a router only. */
    groupBalance?: number;
    expertBalance?: number;
    zLoss?: number;
    entropy?: number;
    supervision?: number;
  };
  learningRate: number;
  /** Global norm before clipping. */
  gradientNorm: number;
  /** Tokens learnt from since the beginning, prompts included. */
  tokens: number;
  /** Of this step. */
  tokensPerSecond: number;
  /** At the mean pace since the start or the resumption. */
  etaSeconds: number | null;
  /** At the steps that evaluate. */
  evaluation?: EvaluationResult;
}

/**
 * Trains the context's target, one yield per optimiser step, after its evaluation and checkpoint. The trainer ends when
 * the iterator does: at the end, by break, by an error or an abort.
 * Errors: TypeError, RangeError at once; those of the data; ERR_AT_MOE_NOT_FINITE before the update; ERR_AT_MOE_MISMATCH
 * for a checkpoint of another run; ERR_AT_MOE_IO; the signal's reason; ERR_AT_MOE_DISPOSED when what is trained is disposed.
 */
export function runTraining(
  context: TrainingContext,
  data: ExampleSource,
  options: TrainingOptions = {},
): AsyncGenerator<TrainingProgress, void, undefined> {
  return bounded(context, data, parseTrainingOptions(options, context.target));
}

/** By the caller's signal and by the life of what is trained. */
async function* bounded(
  context: TrainingContext,
  data: ExampleSource,
  options: ParsedTrainingOptions,
): AsyncGenerator<TrainingProgress, void, undefined> {
  const { signal, release } = joinSignals(options.signal, ...(context.life?.signals ?? []));
  try {
    yield* train(context, data, { ...options, signal });
  } finally {
    release();
  }
}

async function* train(
  context: TrainingContext,
  data: ExampleSource,
  options: ParsedTrainingOptions,
): AsyncGenerator<TrainingProgress, void, undefined> {
  const { engine, target, fingerprint } = context;
  options.signal?.throwIfAborted();
  if (options.checkpoint) await checkCheckpointFolder(options.checkpoint.dir);
  const source = await openSource(context, data, options);
  const schedule = resolveSchedule(options, source.totalSteps);
  const evaluation = options.evaluation && (await readEvaluationSet(context, options.evaluation.data, options));
  const dropout = target === 'base' ? 0 : (options.dropout ?? context.dropout ?? 0);
  const identity = {
    target,
    fingerprint,
    data: source.digest,
    options: decisiveOptions(data, options, schedule, dropout),
  };
  let resumed: Checkpoint | undefined;
  if (options.resume !== undefined) {
    resumed = await loadCheckpoint(options.resume);
    checkResumable(options.resume, resumed, identity);
  }
  const trainer = await engine.beginTraining(context.mixture, engineOptions(context, options, dropout));
  let ending: Promise<void> | undefined;
  const end = () => {
    ending ??= endTrainer(context, trainer);
    return ending;
  };
  // Also where nobody reads on.
  const leave = onAbort(options.signal, () => void end().catch(() => undefined));
  let failed = false;
  try {
    if (resumed) await engine.restoreTrainer(trainer, resumed.state);
    const run = { context, options, source, schedule, evaluation, identity, trainer };
    yield* trainSteps(run, resumed ?? { step: 0, tokens: 0, next: { epoch: 0, index: 0 } });
  } catch (error) {
    failed = true;
    throw error;
  } finally {
    leave();
    // The error that stopped the training says more than one of an engine that is gone.
    await (failed ? end().catch(() => undefined) : end());
  }
}

async function endTrainer({ engine, onEnd }: TrainingContext, trainer: number): Promise<void> {
  try {
    await onEnd?.(trainer);
  } finally {
    await engine.endTraining(trainer);
  }
}

function engineOptions({ target }: TrainingContext, options: ParsedTrainingOptions, dropout: number): TrainOptions {
  const { seed, beta1, beta2, epsilon, weightDecay, maxGradNorm, recompute, baseKl, randomScale, balance } = options;
  const optimiser = { seed, beta1, beta2, epsilon, weightDecay, maxGradNorm };
  return {
    target,
    ...optimiser,
    recompute,
    dropout,
    baseKl,
    scaleMin: randomScale,
    ...(balance && { coefficients: balance }),
  };
}

/** The options that change what is computed, as a checkpoint keeps them. */
function decisiveOptions(
  data: ExampleSource,
  options: ParsedTrainingOptions,
  schedule: Schedule,
  dropout: number,
): RunIdentity['options'] {
  const { batchTokens, batchExamples, seed, lossOn, appendEos, maxLength, tooLong } = options;
  const { beta1, beta2, epsilon, weightDecay, maxGradNorm, baseKl, randomScale, balance } = options;
  return {
    learningRate: schedule.learningRate,
    schedule: schedule.kind,
    warmupSteps: schedule.warmupSteps,
    totalSteps: schedule.totalSteps,
    batchTokens,
    ...(batchExamples === undefined ? { accumulate: options.accumulate ?? 1 } : { batchExamples }),
    shuffle: shuffles(data, options),
    seed,
    lossOn,
    appendEos,
    maxLength: maxLength ?? null,
    tooLong,
    ...{ beta1, beta2, epsilon, weightDecay, maxGradNorm, dropout, baseKl, randomScale },
    balance: balance ?? null,
  };
}

interface Run {
  context: TrainingContext;
  options: ParsedTrainingOptions;
  source: StepSource;
  schedule: Schedule;
  evaluation?: EvaluationSet;
  identity: RunIdentity;
  trainer: number;
}

async function* trainSteps(run: Run, from: RunPosition): AsyncGenerator<TrainingProgress> {
  const { context, options, source, schedule, trainer } = run;
  const { engine } = context;
  const { signal } = options;
  const { totalSteps } = source;
  const routed = context.target === 'router' || context.target === 'joint';
  const plan: BatchPlan = {
    baseKl: options.baseKl > 0,
    groups: options.balance?.supervision ? context.groups : undefined,
  };
  const feed = new StepFeed(source.steps(from.next), (totalSteps ?? Number.POSITIVE_INFINITY) - from.step);
  let { step: done, tokens } = from;
  const start = performance.now();
  try {
    for (;;) {
      signal?.throwIfAborted();
      const step = await orAborted(feed.next(), signal);
      if (!step) return;
      const learningRate = learningRateAt(schedule, done);
      const begin = performance.now();
      const result = await learnStep(step, { engine, trainer, number: done + 1, learningRate, plan, signal });
      const seconds = (performance.now() - begin) / 1000;
      done++;
      tokens += result.tokens;
      const last = await orAborted(feed.ended(), signal);
      const evaluation = await evaluateIfDue(run, done, last);
      await saveIfDue(run, { step: done, tokens, next: step.next }, last);
      const pace = (performance.now() - start) / 1000 / (done - from.step);
      yield {
        step: done,
        totalSteps,
        epoch: source.epochAfter(step, done, last),
        ...lossesOf(result, plan.baseKl, routed),
        learningRate,
        gradientNorm: result.gradientNorm,
        tokens,
        tokensPerSecond: result.tokens / seconds,
        etaSeconds: totalSteps === null ? null : (totalSteps - done) * pace,
        ...(evaluation && { evaluation }),
      };
    }
  } finally {
    feed.close();
  }
}

function lossesOf(
  { loss, kl, auxiliary, routerLosses }: StepResult,
  baseKl: boolean,
  routed: boolean,
): Pick<TrainingProgress, 'loss' | 'auxiliary' | 'losses'> {
  const losses = { languageModel: loss, ...(baseKl && { baseKl: kl }), ...(routed && routerLosses) };
  return { loss: loss + auxiliary, auxiliary, losses };
}

async function evaluateIfDue(run: Run, done: number, last: boolean): Promise<EvaluationResult | undefined> {
  const { context, options, evaluation, trainer } = run;
  const every = options.evaluation?.every ?? Number.POSITIVE_INFINITY;
  if (!evaluation || !(last || done % every === 0)) return undefined;
  return await evaluateTrainer(context.engine, trainer, evaluation, options.signal);
}

async function saveIfDue(run: Run, position: RunPosition, last: boolean): Promise<void> {
  const { checkpoint } = run.options;
  if (!checkpoint || !(last || position.step % checkpoint.every === 0)) return;
  const state = await run.context.engine.trainerState(run.trainer);
  await saveCheckpoint(checkpoint.dir, { ...run.identity, ...position, state });
}
