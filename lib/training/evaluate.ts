import { abortReason, joinSignals } from '../abort.js';
import type { TokenizedExample } from '../data/examples.js';
import { PackedExamples } from '../data/packing.js';
import type { ExampleSource } from '../data/rows.js';
import { AtMoeError } from '../errors.js';
import type { NativeEngine } from '../native-types.js';
import { type BatchTotals, batchTotals, engineBatch } from './batch.js';
import { collectExamples, type TrainingContext } from './context.js';
import { type EvaluationOptions, type ParsedEvaluationOptions, parseEvaluationOptions } from './options.js';

export interface EvaluationResult {
  /** Mean cross-entropy in nats over the scored tokens, by their loss weights; no other loss enters. */
  loss: number;
  /** exp(loss) */
  perplexity: number;
  /** Scored tokens. */
  tokens: number;
}

/** Examples that are evaluated again and again. */
export interface EvaluationSet {
  examples: readonly TokenizedExample[];
  packed: PackedExamples;
  totals: BatchTotals;
}

/** Reads a source to its end. Errors: as readExamples and packing; ERR_AT_MOE_BAD_DATA when no token has a weight. */
export async function readEvaluationSet(
  context: TrainingContext,
  source: ExampleSource,
  options: ParsedEvaluationOptions,
): Promise<EvaluationSet> {
  const examples = await collectExamples(context, source, options);
  if (examples.length === 0) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'there are no examples to evaluate');
  const packed = new PackedExamples(examples, { batchTokens: options.batchTokens, shuffle: false });
  const totals = { lossWeight: 0, labelled: 0, klRows: 0, tokens: 0 };
  for (const { microBatches } of packed.steps()) {
    const part = batchTotals(microBatches);
    totals.lossWeight += part.lossWeight;
    totals.labelled += part.labelled;
    totals.klRows += part.klRows;
    totals.tokens += part.tokens;
  }
  if (totals.lossWeight === 0) {
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'no token of the examples to evaluate has a loss weight');
  }
  return { examples, packed, totals };
}

function result(loss: number, { labelled }: BatchTotals): EvaluationResult {
  return { loss, perplexity: Math.exp(loss), tokens: labelled };
}

function notFinite(source: string | undefined): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_NOT_FINITE', `the loss is not finite in ${source} of the evaluation`);
}

/** The loss by a trainer's current parameters, without dropout. Errors: ERR_AT_MOE_NOT_FINITE; the signal's reason. */
export async function evaluateTrainer(
  engine: NativeEngine,
  trainer: number,
  { packed, totals }: EvaluationSet,
  signal?: AbortSignal,
): Promise<EvaluationResult> {
  let loss = 0;
  for (const { microBatches } of packed.steps()) {
    for (const batch of microBatches) {
      signal?.throwIfAborted();
      const request = engineBatch(batch, totals, { baseKl: false });
      const part = await engine.evaluate(trainer, request, { signal }).catch((error: unknown) => {
        throw abortReason(error, signal);
      });
      if (part.badSequence >= 0) throw notFinite(batch.sources[part.badSequence]);
      loss += part.loss;
    }
  }
  return result(loss, totals);
}

/** Σ weight · −log p of an example's tokens by the base alone. */
async function scoreBase(engine: NativeEngine, example: TokenizedExample, signal?: AbortSignal): Promise<number> {
  const { ids, tokenWeights, source } = example;
  const first = tokenWeights.findIndex((weight) => weight > 0);
  if (first < 0) return 0;
  const logProbs = await engine.score({ ids, first, routing: { kind: 'base' } }, { signal });
  const loss = logProbs.reduce((sum, logProb, i) => {
    const weight = tokenWeights[first + i] as number;
    return weight > 0 ? sum - weight * logProb : sum;
  }, 0);
  if (!Number.isFinite(loss)) throw notFinite(source);
  return loss;
}

async function evaluateBase(engine: NativeEngine, set: EvaluationSet, signal?: AbortSignal): Promise<EvaluationResult> {
  let loss = 0;
  for (const batches of set.packed.plan(0)) {
    signal?.throwIfAborted();
    const examples = batches.flat().map((index) => set.examples[index] as TokenizedExample);
    const parts = await Promise.all(examples.map((example) => scoreBase(engine, example, signal))).catch((error) => {
      throw abortReason(error, signal);
    });
    for (const part of parts) loss += part;
  }
  return result(loss / set.totals.lossWeight, set.totals);
}

/**
 * The loss of the context's target on data: the base (which need not be trainable), an adapter alone, or a mixture by its router.
 * Errors: TypeError, RangeError; those of readEvaluationSet; ERR_AT_MOE_NOT_FINITE; the signal's reason;
 * ERR_AT_MOE_DISPOSED when what is evaluated is disposed.
 */
export async function evaluateLoss(
  context: TrainingContext,
  data: ExampleSource,
  options: EvaluationOptions = {},
): Promise<EvaluationResult> {
  const parsed = parseEvaluationOptions(options);
  const { signal, release } = joinSignals(parsed.signal, ...(context.life?.signals ?? []));
  try {
    return await evaluate(context, data, { ...parsed, signal });
  } finally {
    release();
  }
}

async function evaluate(
  context: TrainingContext,
  data: ExampleSource,
  options: ParsedEvaluationOptions,
): Promise<EvaluationResult> {
  const { signal } = options;
  signal?.throwIfAborted();
  const { engine, mixture, target } = context;
  const set = await readEvaluationSet(context, data, options);
  if (target === 'base') return await evaluateBase(engine, set, signal);
  const trainer = await engine.beginTraining(mixture, { target });
  try {
    return await evaluateTrainer(engine, trainer, set, signal);
  } finally {
    await engine.endTraining(trainer);
  }
}
