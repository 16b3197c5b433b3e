import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { ExampleRow } from '../../lib/data/rows.js';
import { AtMoeError } from '../../lib/errors.js';
import { evaluateLoss, runTraining, type TrainingProgress } from '../../lib/training/run.js';
import { fakeContext, poison, rows } from './fake-engine.js';

async function collect(training: AsyncIterable<TrainingProgress>): Promise<TrainingProgress[]> {
  const all: TrainingProgress[] = [];
  for await (const progress of training) all.push(progress);
  return all;
}

const coded = (code: string, message: RegExp) => (error: unknown) =>
  error instanceof AtMoeError && error.code === code && message.test(error.message);

test('reports every step and ends the trainer', async () => {
  const context = fakeContext();
  const progress = await collect(
    runTraining(context, rows(8), { epochs: 3, batchExamples: 3, learningRate: 0.1, schedule: 'constant', seed: 7 }),
  );
  assert.deepEqual(
    progress.map(({ step }) => step),
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  assert.deepEqual(
    progress.map(({ epoch }) => Math.round(epoch * 3)),
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  const [first, last] = [progress[0] as TrainingProgress, progress[8] as TrainingProgress];
  assert.ok(last.losses.languageModel < first.losses.languageModel - 0.5);
  assert.ok(Math.abs(first.losses.languageModel - Math.log(16)) < 1e-6);
  assert.equal(first.loss, first.losses.languageModel + first.auxiliary);
  assert.deepEqual(Object.keys(first.losses), ['languageModel']);
  assert.deepEqual([first.totalSteps, last.etaSeconds, last.learningRate], [9, 0, 0.1]);
  assert.ok((first.etaSeconds as number) > 0 && first.tokensPerSecond > 0 && first.gradientNorm > 0);
  const all = rows(8).reduce((sum, { prompt, completion }) => sum + prompt.length + completion.length, 0);
  assert.equal(last.tokens, 3 * all);
  assert.equal(context.fake.ended, 1);
  assert.ok(context.parameters.some((value) => value !== 0));
  const { target, seed, scaleMin, dropout, coefficients } = context.fake.options ?? {};
  assert.deepEqual([target, seed, scaleMin, dropout, coefficients], ['adapter', 7, 1, 0, undefined]);
});

test('the micro-batches of a step share its totals', async () => {
  const context = fakeContext({ dropout: 0.1 });
  await collect(runTraining(context, rows(6), { batchTokens: 7, accumulate: 4, shuffle: false, baseKl: 0.5 }));
  const { batches, rates, options } = context.fake;
  assert.ok(rates.length > 1 && batches.length > rates.length);
  const firstStep = batches.slice(0, 4);
  const tokens = firstStep.reduce((sum, { ids }) => sum + ids.length, 0);
  for (const batch of firstStep) {
    assert.equal(batch.stepTokens, tokens);
    assert.equal(batch.stepKlRows, 0);
    assert.ok(batch.ids.length <= 7);
  }
  assert.deepEqual([options?.dropout, options?.baseKl], [0.1, 0.5]);
});

test('a router gets coefficients and targets, and reports its losses', async () => {
  const groups = [{ name: 'function', experts: ['a', 'b'] }];
  const context = fakeContext({ target: 'router', groups });
  const labelled = rows(2).map((row) => ({ ...row, experts: ['b'] }));
  const balance = { groupBalance: 0.5, supervision: 1 };
  const [progress] = await collect(runTraining(context, labelled, { balance, baseKl: 1 }));
  assert.deepEqual(Object.keys(progress?.losses as object), [
    'languageModel',
    'baseKl',
    'groupBalance',
    'expertBalance',
    'zLoss',
    'entropy',
    'supervision',
  ]);
  assert.deepEqual(context.fake.batches[0]?.expertTarget, Float32Array.of(0, 1, 0, 1));
  assert.deepEqual(context.fake.options?.coefficients, { ...balance, expertBalance: 0, zLoss: 0, entropy: 0 });
  await assert.rejects(
    collect(runTraining(fakeContext({ target: 'router', groups }), rows(2), { balance })),
    coded('ERR_AT_MOE_BAD_DATA', /supervision/),
  );
});

test('steps cycle over the epochs, or end them early', async () => {
  const seen = async (options: object) =>
    (await collect(runTraining(fakeContext(), rows(4), { batchExamples: 2, ...options }))).map(({ epoch }) => epoch);
  assert.deepEqual(await seen({ steps: 5 }), [0.5, 1, 1.5, 2, 2.5]);
  assert.deepEqual(await seen({ steps: 3, epochs: 9 }), [0.5, 1, 1.5]);
  assert.deepEqual(await seen({ steps: 9, epochs: 2 }), [0.5, 1, 1.5, 2]);
});

test('an iterable is read as a stream, unless it is to be shuffled or read twice', async () => {
  let given = 0;
  async function* endless(): AsyncGenerator<ExampleRow> {
    for (;;) {
      given++;
      yield rows(1)[0] as ExampleRow;
    }
  }
  const options = { batchExamples: 2, steps: 3 };
  const progress = await collect(runTraining(fakeContext(), endless(), options));
  assert.deepEqual(
    progress.map(({ totalSteps, epoch }) => [totalSteps, epoch]),
    [
      [3, 1 / 3],
      [3, 2 / 3],
      [3, 1],
    ],
  );
  assert.ok(given <= 8);
  const stream = await collect(runTraining(fakeContext(), new Set(rows(3)), { batchExamples: 2 }));
  assert.deepEqual(
    stream.map(({ totalSteps, epoch, etaSeconds }) => [totalSteps, epoch, etaSeconds]),
    [
      [null, 0, null],
      [null, 1, null],
    ],
  );
});

test('evaluates every few steps and at the end, on the same examples', async () => {
  const context = fakeContext();
  const evaluation = { data: rows(3).values(), every: 2 };
  const options = { batchExamples: 1, learningRate: 0.2, evaluation };
  const progress = await collect(runTraining(context, rows(5), options));
  assert.deepEqual(
    progress.map((p) => p.evaluation !== undefined),
    [false, true, false, true, true],
  );
  const [before, after] = [progress[1]?.evaluation, progress[4]?.evaluation];
  assert.ok((after?.loss as number) < (before?.loss as number));
  assert.equal(after?.tokens, 9);
  assert.equal(after?.perplexity, Math.exp(after?.loss as number));
  const atEnd = await collect(runTraining(fakeContext(), rows(5), { ...options, evaluation: { data: rows(3) } }));
  assert.deepEqual(
    atEnd.map((p) => p.evaluation !== undefined),
    [false, false, false, false, true],
  );
});

test('a loss that is not finite stops before the update and names the example', async () => {
  const context = fakeContext();
  const data = [...rows(3), { prompt: [1], completion: [poison, 2] }];
  const training = runTraining(context, data, { batchExamples: 2, shuffle: false });
  await assert.rejects(collect(training), coded('ERR_AT_MOE_NOT_FINITE', /step 2 .*row 4/));
  assert.deepEqual([context.fake.rates.length, context.fake.discards, context.fake.ended], [1, 1, 1]);
  const evaluation = { data: [{ prompt: [1], completion: [poison, 2] }] };
  await assert.rejects(
    collect(runTraining(fakeContext(), rows(1), { evaluation })),
    coded('ERR_AT_MOE_NOT_FINITE', /row 1 of the evaluation/),
  );
});

test('an abort within a step drops it, keeps the steps before and throws the reason', async () => {
  const context = fakeContext();
  const controller = new AbortController();
  context.fake.onBatch = (number) => number === 4 && controller.abort(new Error('enough'));
  const training = runTraining(context, rows(9), { batchTokens: 7, accumulate: 2, signal: controller.signal });
  await assert.rejects(collect(training), /^Error: enough$/);
  assert.deepEqual([context.fake.rates.length, context.fake.discards, context.fake.ended], [1, 1, 1]);
  assert.ok(context.parameters.some((value) => value !== 0));
  assert.deepEqual(await training.next(), { done: true, value: undefined });
});

test('an abort before the start does nothing, and one while a stream waits ends at once', async () => {
  const aborted = fakeContext();
  const signal = AbortSignal.abort();
  await assert.rejects(collect(runTraining(aborted, rows(2), { signal })), { name: 'AbortError' });
  assert.equal(aborted.fake.options, undefined);
  const context = fakeContext();
  const controller = new AbortController();
  async function* waiting(): AsyncGenerator<ExampleRow> {
    yield* rows(2);
    while (context.fake.rates.length === 0) await setImmediate();
    controller.abort();
    await new Promise(() => undefined);
  }
  const training = runTraining(context, waiting(), { shuffle: false, batchExamples: 2, signal: controller.signal });
  await assert.rejects(collect(training), { name: 'AbortError' });
  assert.deepEqual([context.fake.rates.length, context.fake.ended], [1, 1]);
});

test('an abort does not wait for a source that is read into memory', async () => {
  const controller = new AbortController();
  async function* hanging(): AsyncGenerator<ExampleRow> {
    yield* rows(2);
    setImmediate().then(() => controller.abort());
    await new Promise(() => undefined);
  }
  const training = runTraining(fakeContext(), hanging(), { signal: controller.signal });
  await assert.rejects(training.next(), { name: 'AbortError' });
});

test('leaving the loop early ends the trainer', async () => {
  const context = fakeContext();
  for await (const { step } of runTraining(context, rows(9), { batchExamples: 1 })) if (step === 2) break;
  assert.deepEqual([context.fake.ended, context.fake.rates.length, context.fake.discards], [1, 2, 0]);
  assert.ok(context.parameters.some((value) => value !== 0));
});

test('an error of the source comes after the steps before it', async () => {
  const steps: number[] = [];
  const data = [...rows(2), { prompt: [1], completion: [] }];
  const stream = { [Symbol.iterator]: () => data.values() };
  const context = fakeContext();
  await assert.rejects(
    async () => {
      for await (const { step } of runTraining(context, stream, { batchExamples: 1, shuffle: false })) steps.push(step);
    },
    coded('ERR_AT_MOE_BAD_DATA', /row 3/),
  );
  assert.deepEqual([steps, context.fake.ended], [[1, 2], 1]);
});

test('examples that are too long are refused, cut or left out', async () => {
  const long = [{ prompt: [1, 2], completion: [3, 4, 5, 6, 7] }];
  const run = (options: object) => collect(runTraining(fakeContext({ contextLength: 6 }), long, options));
  await assert.rejects(run({}), coded('ERR_AT_MOE_CONTEXT_LENGTH', /7 tokens/));
  await assert.rejects(run({ maxLength: 7 }), RangeError);
  assert.equal((await run({ tooLong: 'truncate' }))[0]?.tokens, 6);
  assert.equal((await run({ tooLong: 'truncate', batchTokens: 4 }))[0]?.tokens, 4);
  const skipped: unknown[] = [];
  const onSkip = (source: string, length: number) => skipped.push([source, length]);
  await assert.rejects(run({ tooLong: 'skip', onSkip }), coded('ERR_AT_MOE_BAD_DATA', /no training examples/));
  assert.deepEqual(skipped, [['row 1', 7]]);
});

test('the same seed gives the same run, another seed another order', async () => {
  const losses = async (seed: number) =>
    (await collect(runTraining(fakeContext(), rows(9), { seed, batchExamples: 2 }))).map(({ loss }) => loss);
  assert.deepEqual(await losses(3), await losses(3));
  assert.ok(!isDeepStrictEqual(await losses(3), await losses(4)));
});

test('evaluateLoss: an adapter by a trainer of its own, the base by scores', async () => {
  const context = fakeContext();
  const { loss, tokens } = await evaluateLoss(context, rows(4), { batchTokens: 8 });
  assert.ok(Math.abs(loss - Math.log(16)) < 1e-6);
  assert.deepEqual([tokens, context.fake.ended, context.parameters.length], [11, 1, 0]);
  const weight = [{ start: 0, end: 1, weight: 0 }];
  const data = [...rows(4), { prompt: [1], completion: [2, 3], weight }];
  const base = await evaluateLoss(fakeContext({ target: 'base', mixture: null }), data);
  assert.deepEqual([base.loss, base.tokens], [2, 12]);
  await assert.rejects(evaluateLoss(context, []), coded('ERR_AT_MOE_BAD_DATA', /no examples/));
  await assert.rejects(evaluateLoss(context, data.slice(4), { lossOn: 'all', maxLength: 100 }), RangeError);
});
