import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTrainingOptions, type TrainingOptions } from '../../lib/training/options.js';
import { learningRateAt, resolveSchedule } from '../../lib/training/schedule.js';

function rates(options: TrainingOptions, total: number): number[] {
  const schedule = resolveSchedule(parseTrainingOptions({ learningRate: 1, ...options }, 'adapter'), total);
  return Array.from({ length: total }, (_, done) => learningRateAt(schedule, done));
}

function near(actual: number[], expected: number[]): void {
  assert.equal(actual.length, expected.length);
  for (const [i, value] of expected.entries()) {
    assert.ok(Math.abs((actual[i] as number) - value) < 1e-12, `rate ${i}: ${actual[i]} instead of ${value}`);
  }
}

// The cases of transformers' own schedule tests: 10 steps at 10.0 with 2 of warm-up; its cosine values are cut, these rounded.
test('schedules are those of transformers', () => {
  near(rates({ schedule: 'constant', learningRate: 10 }, 4), [10, 10, 10, 10]);
  near(rates({ schedule: 'constant', warmupSteps: 4, learningRate: 10 }, 6), [0, 2.5, 5, 7.5, 10, 10]);
  const linear = [0, 5, 10, 8.75, 7.5, 6.25, 5, 3.75, 2.5, 1.25];
  near(rates({ schedule: 'linear', warmupSteps: 2, learningRate: 10 }, 10), linear);
  const cosine = [0, 5, 10, 9.62, 8.54, 6.91, 5, 3.09, 1.46, 0.38];
  near(
    rates({ schedule: 'cosine', warmupSteps: 2, learningRate: 10 }, 10).map((rate) => Math.round(rate * 100) / 100),
    cosine,
  );
});

test('the default is linear; warm-up may be a part of all steps, rounded up', () => {
  near(rates({}, 4), [1, 0.75, 0.5, 0.25]);
  near(rates({ warmupRatio: 0.3, schedule: 'constant' }, 5), [0, 0.5, 1, 1, 1]);
  near(rates({ warmupRatio: 1 }, 2), [0, 0.5]);
});

test('a stream without a number of steps has a constant rate, and no other', () => {
  const parsed = (options: TrainingOptions) => parseTrainingOptions(options, 'router');
  assert.deepEqual(resolveSchedule(parsed({ warmupSteps: 3 }), null), {
    kind: 'constant',
    learningRate: 1e-3,
    warmupSteps: 3,
    totalSteps: null,
  });
  assert.throws(() => resolveSchedule(parsed({ schedule: 'linear' }), null), TypeError);
  assert.throws(() => resolveSchedule(parsed({ warmupRatio: 0.1 }), null), TypeError);
});
