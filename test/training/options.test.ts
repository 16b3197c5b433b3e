import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseEvaluationOptions, parseTrainingOptions, type TrainingOptions } from '../../lib/training/options.js';
import { runTraining } from '../../lib/training/run.js';
import { fakeContext, rows } from './fake-engine.js';

test('defaults', () => {
  const rate = (target: 'adapter' | 'router' | 'joint' | 'base') => parseTrainingOptions({}, target).learningRate;
  assert.deepEqual([rate('adapter'), rate('router'), rate('joint'), rate('base')], [2e-4, 1e-3, 1e-4, 2e-5]);
  const { batchTokens, maxGradNorm, seed } = parseTrainingOptions({}, 'adapter');
  assert.deepEqual([batchTokens, maxGradNorm, seed], [2048, 1, 0]);
  assert.equal(parseTrainingOptions({ learningRate: 0 }, 'adapter').learningRate, 0);
});

const wrong: [unknown, typeof TypeError | typeof RangeError][] = [
  [{ epochs: 0 }, RangeError],
  [{ steps: 1.5 }, TypeError],
  [{ learningRate: -1 }, RangeError],
  [{ learningRate: '1e-4' }, TypeError],
  [{ learningRate: Number.NaN }, TypeError],
  [{ schedule: 'step' }, TypeError],
  [{ beta1: 1 }, RangeError],
  [{ dropout: 1 }, RangeError],
  [{ randomScale: 2 }, RangeError],
  [{ seed: -1 }, RangeError],
  [{ learning_rate: 1 }, TypeError],
  [{ accumulate: 2, batchExamples: 2 }, TypeError],
  [{ warmupSteps: 2, warmupRatio: 0.1 }, TypeError],
  [{ balance: { zLoss: 1 } }, TypeError],
  [{ evaluation: { data: 3 } }, TypeError],
  [{ checkpoint: { every: 3 } }, TypeError],
  [{ signal: {} }, TypeError],
  [null, TypeError],
];

for (const [options, error] of wrong) {
  test(`${JSON.stringify(options)} is refused at once with a ${error.name}`, () => {
    assert.throws(() => runTraining(fakeContext(), rows(2), options as TrainingOptions), error);
  });
}

test('options that do not fit the target are refused', () => {
  assert.throws(() => parseTrainingOptions({ balance: {} }, 'base'), /balance/);
  assert.throws(() => parseTrainingOptions({ randomScale: 0.5 }, 'router'), /randomScale/);
  assert.throws(() => parseTrainingOptions({ baseKl: 1 }, 'base'), /baseKl/);
  assert.throws(() => parseTrainingOptions({ dropout: 0.1 }, 'base'), /dropout/);
  assert.deepEqual(parseTrainingOptions({ balance: { entropy: -0.1 } }, 'joint').balance?.entropy, -0.1);
  assert.throws(() => parseEvaluationOptions({ epochs: 1 } as object), TypeError);
});
