import { z } from 'zod';
import type { ExampleSource } from '../data/rows.js';
import { formatIssues } from '../formats/json.js';
import type { RouterCoefficients, TrainTarget } from '../native-training-types.js';

/** How rows become examples; as in TokenizeOptions. */
export interface ExampleOptions {
  /** Most rows (tokens) of a micro-batch, which bounds memory. Default 2048; no example may be longer. */
  batchTokens?: number;
  /** Tokens that are learnt: of the completion (default), or of the prompt as well. */
  lossOn?: 'completion' | 'all';
  /** Append EOS to completions; default true. */
  appendEos?: boolean;
  /** Longest example in tokens; default and upper bound: the model's context. */
  maxLength?: number;
  /** A longer example is an error (default), loses its end, or is left out. */
  tooLong?: 'error' | 'truncate' | 'skip';
  /** Called for every example that `tooLong: 'skip'` leaves out. */
  onSkip?: (source: string, length: number) => void;
}

export interface EvaluationOptions extends ExampleOptions {
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface TrainingOptions extends ExampleOptions {
  /** Passes over the examples. Default 1; with `steps` alone as many as they take. */
  epochs?: number;
  /** Optimiser steps at most. */
  steps?: number;
  /**
   * The highest rate of the schedule. Default 2e-4 for an adapter, 1e-3 for a router (which starts at zero), 1e-4 for
   * both together, 2e-5 for a base.
   */
  learningRate?: number;
  /**
   * As in transformers: the rate of the k-th step is factor(k - 1) · learningRate, warm-up being linear from 0.
   * Default linear; constant where the number of steps is not known.
   */
  schedule?: 'constant' | 'linear' | 'cosine';
  /** Steps of warm-up; default 0. Not together with warmupRatio. */
  warmupSteps?: number;
  /** Warm-up as a part of all steps, 0 to 1, rounded up. */
  warmupRatio?: number;
  /** Micro-batches per optimiser step; default 1. Not together with batchExamples. */
  accumulate?: number;
  /** Examples per optimiser step, in as many micro-batches as they need. */
  batchExamples?: number;
  /**
   * Another order in each epoch. Default true for a file or an array, which is read into memory. Any other iterable is by
   * default a stream of one pass, read a step ahead; `shuffle` or `epochs` reads it into memory as well.
   */
  shuffle?: boolean;
  /** Of the order and of what is drawn in training; a non-negative safe integer, default 0. */
  seed?: number;
  /** AdamW; defaults 0.9, 0.999, 1e-8, 0. */
  beta1?: number;
  beta2?: number;
  epsilon?: number;
  weightDecay?: number;
  /** Gradients are scaled down to this global norm; default 1, 0 = never. */
  maxGradNorm?: number;
  /** Of the adapters' input, 0 to below 1. Default: what the adapter was made with. */
  dropout?: number;
  /** Keep only the layers' inputs and run each layer again in the backward pass: the same results in less memory. */
  recompute?: boolean;
  /** Weight of KL(base ‖ model) over the completion tokens of weight 0; default 0. Not for a base. */
  baseKl?: number;
  /** Adapters only: the adapter's strength is drawn from U(randomScale, 1) for every example; default 1. */
  randomScale?: number;
  /** Coefficients of the router's losses; routers and joint training only. */
  balance?: RouterCoefficients;
  /** Loss on other data after every `every` steps and at the end; default at the end alone. */
  evaluation?: { data: ExampleSource; every?: number };
  /** State written to the folder `dir` after every `every` steps (default 500) and at the end. */
  checkpoint?: { dir: string; every?: number };
  /** Folder of a checkpoint to go on from; data and options must be those it was written with. */
  resume?: string;
  /** Stops within a unit of work, with the signal's reason; completed steps stay. */
  signal?: AbortSignal;
}

const count = z.int().min(1);
const fraction = z.number().min(0).max(1);
const belowOne = z.number().min(0).lt(1);
const notNegative = z.number().min(0);
const finite = z.number();
const signal = z.instanceof(AbortSignal, { error: 'expected an AbortSignal' });
const callback = z.custom<(source: string, length: number) => void>((value) => typeof value === 'function', {
  error: 'expected a function',
});
const source = z.custom<ExampleSource>(
  (value) =>
    typeof value === 'string' ||
    (typeof value === 'object' && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value)),
  { error: 'expected the path of a JSONL file or an iterable of rows' },
);

const exampleFields = {
  batchTokens: count.default(2048),
  lossOn: z.enum(['completion', 'all']).default('completion'),
  appendEos: z.boolean().default(true),
  maxLength: z.int().min(2).optional(),
  tooLong: z.enum(['error', 'truncate', 'skip']).default('error'),
  onSkip: callback.optional(),
};

const evaluationSchema = z.strictObject({ ...exampleFields, signal: signal.optional() });

const trainingSchema = z.strictObject({
  ...exampleFields,
  epochs: count.optional(),
  steps: count.optional(),
  learningRate: notNegative.optional(),
  schedule: z.enum(['constant', 'linear', 'cosine']).optional(),
  warmupSteps: z.int().min(0).optional(),
  warmupRatio: fraction.optional(),
  accumulate: count.optional(),
  batchExamples: count.optional(),
  shuffle: z.boolean().optional(),
  seed: z.int().min(0).default(0),
  beta1: belowOne.default(0.9),
  beta2: belowOne.default(0.999),
  epsilon: notNegative.default(1e-8),
  weightDecay: notNegative.default(0),
  maxGradNorm: notNegative.default(1),
  dropout: belowOne.optional(),
  recompute: z.boolean().default(false),
  baseKl: notNegative.default(0),
  randomScale: fraction.default(1),
  balance: z
    .strictObject({
      groupBalance: finite.default(0),
      expertBalance: finite.default(0),
      zLoss: finite.default(0),
      entropy: finite.default(0),
      supervision: finite.default(0),
    })
    .optional(),
  evaluation: z.strictObject({ data: source, every: count.optional() }).optional(),
  checkpoint: z.strictObject({ dir: z.string().min(1), every: count.default(500) }).optional(),
  resume: z.string().min(1).optional(),
  signal: signal.optional(),
});

export type ParsedEvaluationOptions = z.infer<typeof evaluationSchema>;
export type ParsedTrainingOptions = z.infer<typeof trainingSchema> & { learningRate: number };

const defaultRates: Record<TrainTarget, number> = { adapter: 2e-4, router: 1e-3, joint: 1e-4, base: 2e-5 };

function parse<T extends z.ZodType>(schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const outOfRange = result.error.issues.every(({ code }) => code === 'too_small' || code === 'too_big');
  throw new (outOfRange ? RangeError : TypeError)(formatIssues(result.error));
}

/** The options with their defaults. Errors: TypeError, RangeError. */
export function parseEvaluationOptions(options: EvaluationOptions): ParsedEvaluationOptions {
  return parse(evaluationSchema, options);
}

/** The options with the defaults for `target`. Errors: TypeError (also for options that do not fit the target), RangeError. */
export function parseTrainingOptions(options: TrainingOptions, target: TrainTarget): ParsedTrainingOptions {
  const parsed = parse(trainingSchema, options);
  const refuse = (refused: boolean, message: string): void => {
    if (refused) throw new TypeError(message);
  };
  refuse(
    parsed.accumulate !== undefined && parsed.batchExamples !== undefined,
    'give either accumulate or batchExamples',
  );
  refuse(
    parsed.warmupSteps !== undefined && parsed.warmupRatio !== undefined,
    'give either warmupSteps or warmupRatio',
  );
  const routed = target === 'router' || target === 'joint';
  refuse(parsed.balance !== undefined && !routed, 'balance is for training a router');
  refuse(parsed.randomScale !== 1 && target !== 'adapter', 'randomScale is for training one adapter');
  refuse(parsed.baseKl > 0 && target === 'base', 'baseKl compares with the base, which is what is trained here');
  refuse((parsed.dropout ?? 0) > 0 && target === 'base', 'dropout is for adapters; a base is trained without');
  return { ...parsed, learningRate: parsed.learningRate ?? defaultRates[target] };
}
