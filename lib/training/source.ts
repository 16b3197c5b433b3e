import { createHash } from 'node:crypto';
import type { TokenizedExample } from '../data/examples.js';
import {
  PackedExamples,
  type PackingOptions,
  type PackingState,
  streamSteps,
  type TrainingStep,
} from '../data/packing.js';
import type { ExampleSource } from '../data/rows.js';
import { AtMoeError } from '../errors.js';
import { collectExamples, readExamples, type TrainingContext } from './context.js';
import type { ParsedTrainingOptions } from './options.js';

/** The steps of a run. */
export interface StepSource {
  /** Of the whole run; null for a stream without a given number of steps. */
  totalSteps: number | null;
  /** Digest of the examples; null for a stream. */
  digest: string | null;
  steps(from: PackingState): AsyncIterator<TrainingStep> | Iterator<TrainingStep>;
  /** Epochs that are over after a step, with the part of the current one; 0 within a stream of unknown length. */
  epochAfter(step: TrainingStep, done: number, last: boolean): number;
}

/** SHA-256 over what is learnt from the examples, in their order. */
export function digestExamples(examples: readonly TokenizedExample[]): string {
  const hash = createHash('sha256');
  for (const { ids, promptLength, tokenWeights, groups, experts } of examples) {
    hash.update(Int32Array.of(ids.length, promptLength, groups?.length ?? 0, experts?.length ?? 0));
    for (const values of [ids, tokenWeights, groups, experts]) if (values) hash.update(values);
  }
  return hash.digest('hex');
}

/** Whether the examples come in another order in each epoch: not where an iterable that is no array is read as a stream. */
export function shuffles(data: ExampleSource, { shuffle }: Pick<ParsedTrainingOptions, 'shuffle'>): boolean {
  return shuffle ?? (typeof data === 'string' || Array.isArray(data));
}

/**
 * Opens the data of a run. It is read into memory, but for an iterable (no array) that is not shuffled and has at most one
 * epoch: that is read as a stream, a step ahead. Errors: as readExamples and packing; ERR_AT_MOE_BAD_DATA for
 * supervision without a label.
 */
export async function openSource(
  context: TrainingContext,
  data: ExampleSource,
  options: ParsedTrainingOptions,
): Promise<StepSource> {
  const { batchTokens, accumulate, batchExamples, seed, steps: limit = Number.POSITIVE_INFINITY } = options;
  const shuffle = shuffles(data, options);
  const packing: PackingOptions = { batchTokens, accumulate, batchExamples, shuffle, seed };
  const endless = options.epochs === undefined && options.steps !== undefined;
  const isStream = typeof data !== 'string' && !Array.isArray(data) && !shuffle && (options.epochs ?? 1) === 1;
  if (isStream) {
    const reading = readExamples(context, data, options);
    const totalSteps = options.steps ?? null;
    return {
      totalSteps,
      digest: null,
      steps: (from) => streamSteps(reading, packing, from),
      epochAfter: (_, done, last) => (last ? 1 : totalSteps === null ? 0 : done / totalSteps),
    };
  }
  const examples = await collectExamples(context, data, options);
  if (options.balance?.supervision && !examples.some(({ groups }) => groups)) {
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'supervision needs rows with groups or experts, and there are none');
  }
  const packed = new PackedExamples(examples, {
    ...packing,
    epochs: endless ? Number.MAX_SAFE_INTEGER : (options.epochs ?? 1),
  });
  let current = { epoch: -1, steps: 0 };
  return {
    totalSteps: endless ? limit : Math.min(limit, packed.totalSteps()),
    digest: digestExamples(examples),
    steps: (from) => packed.steps(from),
    epochAfter({ epoch, next }) {
      if (next.index === 0) return next.epoch;
      if (current.epoch !== epoch) current = { epoch, steps: packed.plan(epoch).length };
      return epoch + next.index / current.steps;
    },
  };
}

/** Hands out steps one by one; the next is made ready while the current one is trained. */
export class StepFeed {
  readonly #steps: AsyncIterator<TrainingStep> | Iterator<TrainingStep>;
  #left: number;
  #ahead: Promise<IteratorResult<TrainingStep>> | undefined;

  /** At most `limit` steps. */
  constructor(steps: AsyncIterator<TrainingStep> | Iterator<TrainingStep>, limit: number) {
    this.#steps = steps;
    this.#left = limit;
    this.#advance();
  }

  /** The next step, undefined at the end. Rejects with the error of the source. */
  async next(): Promise<TrainingStep | undefined> {
    if (this.#left <= 0) return undefined;
    const result = await this.#ahead;
    if (!result || result.done) return undefined;
    this.#left--;
    this.#advance();
    return result.value;
  }

  /** Whether the step handed out last was the last one. An error of the source is left to `next`. */
  async ended(): Promise<boolean> {
    if (this.#left <= 0) return true;
    return (
      this.#ahead?.then(
        ({ done }) => done === true,
        () => false,
      ) ?? true
    );
  }

  /** Lets go of the source without waiting for it: it may never give another row. */
  close(): void {
    this.#left = 0;
    const closing = async () => await this.#steps.return?.();
    closing().catch(() => undefined);
  }

  #advance(): void {
    if (this.#left <= 0) return;
    const next = async () => await this.#steps.next();
    this.#ahead = next();
    this.#ahead.catch(() => undefined);
  }
}
