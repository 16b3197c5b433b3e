import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { test } from 'node:test';
import { joinSignals, onAbort } from '../lib/abort.js';
import { loadModel } from '../lib/index.js';
import { goldenBase } from './helpers/engine.js';

test('of many who wait for a signal all are told once, those who left are not', () => {
  const controller = new AbortController();
  const told: number[] = [];
  const leave = Array.from({ length: 20 }, (_, i) => onAbort(controller.signal, () => told.push(i)));
  leave[3]?.();
  assert.equal(getEventListeners(controller.signal, 'abort').length, 1);
  controller.abort();
  assert.deepEqual(told.length, 19);
  assert.ok(!told.includes(3));
  onAbort(controller.signal, () => told.push(99));
  assert.equal(told.at(-1), 99);
});

test('a joined signal aborts with the first of its signals, and lets go of them', () => {
  const [one, other] = [new AbortController(), new AbortController()];
  const joined = joinSignals(one.signal, undefined, other.signal);
  other.abort('enough');
  one.abort('too late');
  assert.equal(joined.signal.reason, 'enough');
  const third = new AbortController();
  joinSignals(third.signal).release();
  assert.equal(getEventListeners(third.signal, 'abort').length, 0);
  assert.equal(joinSignals(one.signal).signal.reason, 'too late');
});

test('one signal for many calls makes no warning and keeps no listener', async (t) => {
  const warnings: Error[] = [];
  const hear = (warning: Error) => void warnings.push(warning);
  process.on('warning', hear);
  t.after(() => process.off('warning', hear));
  const model = await loadModel(goldenBase, { device: 'cpu', threads: 1 });
  t.after(() => model.dispose());
  const { signal } = new AbortController();
  const prompts = Array.from({ length: 24 }, (_, i) => [1 + i]);
  const options = { maxTokens: 2, ignoreEos: true, signal };
  await model.completeAll(prompts, options);
  for await (const _ of model.generateAll(prompts, options));
  await Promise.all(prompts.map((prompt) => model.complete(prompt, options)));
  await Promise.all(prompts.map((prompt) => model.score(prompt, [2], { signal })));
  await model.evaluate(
    prompts.map((prompt) => ({ prompt, completion: [2] })),
    { signal },
  );
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(warnings, []);
  assert.equal(getEventListeners(signal, 'abort').length, 0);
});
