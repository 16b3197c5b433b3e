import { AtMoeError } from '../errors.js';
import type { TokenizedExample } from './examples.js';
import { buildMicroBatch, type MicroBatch } from './micro-batch.js';
import { permutation } from './random.js';

export interface PackingOptions {
  /** Most tokens in a micro-batch. */
  batchTokens: number;
  /** Micro-batches per optimiser step; default 1. Not together with batchExamples. */
  accumulate?: number;
  /** Examples per optimiser step, in as many micro-batches as they need. */
  batchExamples?: number;
  /** Passes over the examples; default 1. */
  epochs?: number;
  /** Shuffle each epoch anew by `seed`; default true. */
  shuffle?: boolean;
  /** Non-negative safe integer; default 0. */
  seed?: number;
}

/** A place in the run: the step `index` of `epoch`, both from 0, is the next one. */
export interface PackingState {
  epoch: number;
  index: number;
}

/** What one optimiser step learns from. */
export interface TrainingStep {
  epoch: number;
  /** Number of the step in its epoch. */
  index: number;
  microBatches: MicroBatch[];
  /** Where to go on after this step. */
  next: PackingState;
}

function positive(options: object, name: string, value: number | undefined): void {
  if (value !== undefined && !(Number.isSafeInteger(value) && value >= 1)) {
    throw new RangeError(`${name} must be a positive integer in ${JSON.stringify(options)}`);
  }
}

function checkOptions(options: PackingOptions): void {
  const { batchTokens, accumulate, batchExamples, epochs, seed = 0 } = options;
  if (typeof batchTokens !== 'number') throw new TypeError('batchTokens must be a number');
  for (const [name, value] of Object.entries({ batchTokens, accumulate, batchExamples, epochs })) {
    positive(options, name, value);
  }
  if (!(Number.isSafeInteger(seed) && seed >= 0)) throw new RangeError('seed must be a non-negative safe integer');
  if (accumulate !== undefined && batchExamples !== undefined) {
    throw new TypeError('give either accumulate or batchExamples');
  }
}

function checkFits(example: TokenizedExample, batchTokens: number): void {
  const { length } = example.ids;
  if (length <= batchTokens) return;
  const message = `${example.source}: the example has ${length} tokens, more than batchTokens (${batchTokens})`;
  throw new AtMoeError('ERR_AT_MOE_BAD_DATA', message);
}

/** Collects examples in their order into micro-batches, and these into steps. An example is never split. */
class Packer<T> {
  readonly #options: PackingOptions;
  readonly #lengthOf: (item: T) => number;
  #step: T[][] = [];
  #tokens = 0;
  #items = 0;

  constructor(options: PackingOptions, lengthOf: (item: T) => number) {
    this.#options = options;
    this.#lengthOf = lengthOf;
  }

  /** Takes an item; returns the step that is complete without it or with it. */
  add(item: T): T[][] | undefined {
    const { batchTokens, batchExamples, accumulate = 1 } = this.#options;
    const length = this.#lengthOf(item);
    const fits = this.#step.length > 0 && this.#tokens + length <= batchTokens;
    let done: T[][] | undefined;
    if (!fits) {
      if (batchExamples === undefined && this.#step.length === accumulate) done = this.finish();
      this.#step.push([]);
      this.#tokens = 0;
    }
    this.#step.at(-1)?.push(item);
    this.#tokens += length;
    this.#items++;
    return this.#items === batchExamples ? this.finish() : done;
  }

  /** The step begun so far, if any. */
  finish(): T[][] | undefined {
    const step = this.#step;
    this.#step = [];
    this.#tokens = 0;
    this.#items = 0;
    return step.length > 0 ? step : undefined;
  }
}

/** Steps over examples in memory, for any number of epochs. The order of an epoch depends on (seed, epoch) alone. */
export class PackedExamples {
  readonly #examples: readonly TokenizedExample[];
  readonly #options: PackingOptions;

  /**
   * @throws RangeError or TypeError for wrong options; AtMoeError ERR_AT_MOE_BAD_DATA when there is no example, or one
   * longer than batchTokens (named).
   */
  constructor(examples: readonly TokenizedExample[], options: PackingOptions) {
    checkOptions(options);
    if (examples.length === 0) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'there are no training examples');
    for (const example of examples) checkFits(example, options.batchTokens);
    this.#examples = examples;
    this.#options = { ...options };
  }

  /** Reads a source to its end and keeps the examples. */
  static async read(source: AsyncIterable<TokenizedExample>, options: PackingOptions): Promise<PackedExamples> {
    checkOptions(options);
    const examples: TokenizedExample[] = [];
    for await (const example of source) examples.push(example);
    return new PackedExamples(examples, options);
  }

  get length(): number {
    return this.#examples.length;
  }

  /** Optimiser steps of all epochs. */
  totalSteps(): number {
    let steps = 0;
    for (let epoch = 0; epoch < (this.#options.epochs ?? 1); epoch++) steps += this.plan(epoch).length;
    return steps;
  }

  /** The steps of an epoch as indices of examples: [step][micro-batch][sequence]. */
  plan(epoch: number): number[][][] {
    const { shuffle = true, seed = 0 } = this.#options;
    const n = this.#examples.length;
    const order = shuffle ? permutation(n, seed, epoch) : Uint32Array.from({ length: n }, (_, i) => i);
    const packer = new Packer<number>(this.#options, (i) => this.#at(i).ids.length);
    const steps: number[][][] = [];
    for (const index of order) {
      const step = packer.add(index);
      if (step) steps.push(step);
    }
    const rest = packer.finish();
    if (rest) steps.push(rest);
    return steps;
  }

  /** The steps from `state` on. */
  *steps(state: PackingState = { epoch: 0, index: 0 }): Generator<TrainingStep> {
    const epochs = this.#options.epochs ?? 1;
    for (let epoch = state.epoch; epoch < epochs; epoch++) {
      const plan = this.plan(epoch);
      for (let index = epoch === state.epoch ? state.index : 0; index < plan.length; index++) {
        const microBatches = (plan[index] as number[][]).map((batch) => buildMicroBatch(batch.map((i) => this.#at(i))));
        const next = index + 1 < plan.length ? { epoch, index: index + 1 } : { epoch: epoch + 1, index: 0 };
        yield { epoch, index, microBatches, next };
      }
    }
  }

  #at(index: number): TokenizedExample {
    return this.#examples[index] as TokenizedExample;
  }
}

/**
 * Steps over a stream that is read once and not kept: one epoch in the order of the source. Resuming reads and drops
 * what came before `state`.
 * @throws RangeError when epochs is above 1; TypeError when shuffle is asked for; AtMoeError as PackedExamples and the
 * source.
 */
export async function* streamSteps(
  source: AsyncIterable<TokenizedExample>,
  options: PackingOptions,
  state: PackingState = { epoch: 0, index: 0 },
): AsyncGenerator<TrainingStep> {
  checkOptions(options);
  if ((options.epochs ?? 1) !== 1) throw new RangeError('a stream can be read for one epoch only');
  if (options.shuffle) throw new TypeError('a stream cannot be shuffled');
  if (state.epoch > 0) return;
  const packer = new Packer<TokenizedExample>(options, ({ ids }) => ids.length);
  let index = 0;
  const toStep = (batches: TokenizedExample[][] | undefined): TrainingStep[] => {
    if (!batches) return [];
    const at = index++;
    if (at < state.index) return [];
    return [{ epoch: 0, index: at, microBatches: batches.map(buildMicroBatch), next: { epoch: 0, index: at + 1 } }];
  };
  let empty = true;
  for await (const example of source) {
    empty = false;
    checkFits(example, options.batchTokens);
    yield* toStep(packer.add(example));
  }
  yield* toStep(packer.finish());
  if (empty) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'there are no training examples');
}
