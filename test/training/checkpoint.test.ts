import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AtMoeError } from '../../lib/errors.js';
import { loadCheckpoint } from '../../lib/training/checkpoint.js';
import type { TrainingOptions } from '../../lib/training/options.js';
import { runTraining, type TrainingContext } from '../../lib/training/run.js';
import { fakeContext, rows } from './fake-engine.js';

function folder(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'at-moe-training-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return join(dir, 'checkpoint');
}

interface Outcome {
  losses: number[];
  tokens: number | undefined;
  parameters: Float32Array;
}

async function outcome(
  options: TrainingOptions,
  stopAfter = Number.POSITIVE_INFINITY,
  data = rows(7),
): Promise<Outcome> {
  const context = fakeContext();
  const losses: number[] = [];
  let tokens: number | undefined;
  for await (const progress of runTraining(context, data, options)) {
    losses.push(progress.loss);
    tokens = progress.tokens;
    if (losses.length === stopAfter) break;
  }
  return { losses, tokens, parameters: context.parameters };
}

const options: TrainingOptions = { epochs: 3, batchExamples: 2, learningRate: 0.05, warmupSteps: 2, seed: 11 };

test('a resumed run is the uninterrupted run, bit for bit', async (t) => {
  const whole = await outcome(options);
  assert.equal(whole.losses.length, 12);
  for (const stop of [1, 4, 6, 11]) {
    const dir = folder(t);
    await outcome({ ...options, checkpoint: { dir, every: 1 } }, stop);
    const rest = await outcome({ ...options, checkpoint: { dir, every: 5 }, resume: dir });
    assert.deepEqual(rest.losses, whole.losses.slice(stop));
    assert.deepEqual(rest.parameters, whole.parameters);
    assert.equal(rest.tokens, whole.tokens);
    assert.equal((await loadCheckpoint(dir)).step, 12);
    assert.deepEqual((await outcome({ ...options, resume: dir })).parameters, whole.parameters);
  }
});

test('a resumed stream goes on where it stopped; a longer run may go on from a constant rate', async (t) => {
  const dir = folder(t);
  const stream: TrainingOptions = { shuffle: false, batchExamples: 2 };
  const data = () => new Set(rows(7)) as never;
  const whole = await outcome(stream, undefined, data());
  await outcome({ ...stream, checkpoint: { dir, every: 2 } }, 2, data());
  assert.deepEqual((await outcome({ ...stream, resume: dir }, undefined, data())).parameters, whole.parameters);
  const constant: TrainingOptions = { ...options, schedule: 'constant', epochs: 1 };
  await outcome({ ...constant, checkpoint: { dir } });
  const longer = await outcome({ ...constant, epochs: 2, resume: dir });
  assert.deepEqual(longer.parameters, (await outcome({ ...constant, epochs: 2 })).parameters);
});

test('a checkpoint is written every few steps and at the end', async (t) => {
  const dir = folder(t);
  const steps: number[] = [];
  const context = fakeContext();
  for await (const _ of runTraining(context, rows(7), { batchExamples: 1, checkpoint: { dir, every: 3 } })) {
    steps.push(
      await loadCheckpoint(dir).then(
        ({ step }) => step,
        () => 0,
      ),
    );
  }
  assert.deepEqual(steps, [0, 0, 3, 3, 3, 6, 7]);
  assert.deepEqual(readdirSync(dir), ['checkpoint.json', 'state.safetensors']);
});

test('a folder that holds something else is refused before the training', async (t) => {
  const dir = folder(t);
  const refused = async (checkpoint: string, message: RegExp) => {
    const context = fakeContext();
    const training = runTraining(context, rows(2), { checkpoint: { dir: checkpoint } });
    await assert.rejects(
      training.next(),
      (error: AtMoeError) => error.code === 'ERR_AT_MOE_IO' && message.test(error.message),
    );
    assert.equal(context.fake.options, undefined);
  };
  mkdirSync(dir);
  writeFileSync(join(dir, 'notes.txt'), '');
  await refused(dir, /notes\.txt/);
  await refused(join(dir, 'notes.txt'), /saving failed: ENOTDIR/);
});

test('a checkpoint of another run is refused, saying what differs', async (t) => {
  const dir = folder(t);
  await outcome({ ...options, checkpoint: { dir, every: 1 } }, 1);
  const refused = async (over: Partial<TrainingContext>, change: TrainingOptions, data: object[], message: RegExp) => {
    const context = fakeContext(over);
    const training = runTraining(context, data as never, { ...options, resume: dir, ...change });
    await assert.rejects(training.next(), (error: AtMoeError) => {
      return error.code === 'ERR_AT_MOE_MISMATCH' && message.test(error.message);
    });
    assert.equal(context.fake.options, undefined);
  };
  await refused({ target: 'joint' }, {}, rows(7), /target is "adapter" in the checkpoint and "joint" now/);
  await refused({ fingerprint: 'other' }, {}, rows(7), /another model or mixture/);
  await refused({}, {}, rows(8), /other data/);
  await refused({}, { learningRate: 0.1 }, rows(7), /learningRate is 0.05 in the checkpoint and 0.1 now$/);
  await refused({}, { epochs: 4 }, rows(7), /totalSteps is 12 in the checkpoint and 16 now/);
  await refused({}, { accumulate: 2, batchExamples: undefined }, rows(7), /batchExamples is 2 .*; accumulate/);
  await refused({ dropout: 0.5 }, {}, rows(7), /dropout/);
});

test('a damaged or missing checkpoint is refused', async (t) => {
  const dir = folder(t);
  const code = async () =>
    await loadCheckpoint(dir).then(
      () => '',
      (error: AtMoeError) => error.code,
    );
  assert.equal(await code(), 'ERR_AT_MOE_NOT_FOUND');
  await outcome({ ...options, checkpoint: { dir, every: 1 } }, 1);
  const [description, state] = ['checkpoint.json', 'state.safetensors'].map((name) => join(dir, name)) as [
    string,
    string,
  ];
  const [text, bytes] = [readFileSync(description, 'utf8'), readFileSync(state)];
  writeFileSync(description, text.replace('"version": 1', '"version": 2'));
  assert.equal(await code(), 'ERR_AT_MOE_UNSUPPORTED');
  writeFileSync(description, text.replace('"step": 1', '"step": -1'));
  assert.equal(await code(), 'ERR_AT_MOE_BAD_FILE');
  writeFileSync(description, text);
  writeFileSync(state, bytes.subarray(0, bytes.length - 4));
  assert.equal(await code(), 'ERR_AT_MOE_BAD_FILE');
  const nan = Buffer.from(bytes);
  nan.writeFloatLE(Number.NaN, nan.length - 4);
  writeFileSync(state, nan);
  assert.equal(await code(), 'ERR_AT_MOE_NOT_FINITE');
});

test('a kill while a checkpoint is written leaves a whole one', async (t) => {
  const dir = folder(t);
  for (let round = 0; round < 4; round++) {
    const child = fork(join(import.meta.dirname, 'checkpoint-child.js'), [dir]);
    const closed = once(child, 'close');
    await once(child, 'message');
    await sleep(20 + 7 * round);
    child.kill('SIGKILL');
    await closed;
    const { step, next, state } = await loadCheckpoint(dir);
    assert.ok(step >= 1 && next.index === step);
    assert.ok(state.tensors[0]?.values.every((value) => value === step));
  }
});
