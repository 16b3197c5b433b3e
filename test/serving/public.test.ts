import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { type LoadModelOptions, loadModel } from '../../lib/index.js';
import { goldenBase } from '../helpers/engine.js';
import { prompt } from './support.js';

async function open(t: TestContext, options: LoadModelOptions) {
  const model = await loadModel(goldenBase, { device: 'cpu', threads: 1, ...options });
  t.after(() => model.dispose());
  return model;
}

describe('a model that serves', () => {
  it('tells a full queue and a deadline by their codes', async (t) => {
    const model = await open(t, { maxBatch: 1, maxQueue: 1 });
    const ids = prompt(8, 1);
    const many = Array.from({ length: 12 }, () => model.complete(ids, { maxTokens: 400, ignoreEos: true }));
    const codes = (await Promise.allSettled(many)).map((end) => (end.status === 'rejected' ? end.reason.code : 'done'));
    assert.deepEqual(codes.slice(0, 2), ['done', 'done']);
    assert.ok(codes.includes('ERR_AT_MOE_QUEUE_FULL'));
    const late = { timeoutMs: 0.001 };
    await assert.rejects(model.complete(ids, late), { code: 'ERR_AT_MOE_DEADLINE' });
    await assert.rejects(model.generate(ids, late).next(), { code: 'ERR_AT_MOE_DEADLINE' });
    await assert.rejects(model.score(ids, [1, 2], late), { code: 'ERR_AT_MOE_DEADLINE' });
    const { refused, expired, requests, running } = await model.stats();
    assert.equal(refused, codes.filter((code) => code === 'ERR_AT_MOE_QUEUE_FULL').length);
    assert.deepEqual({ expired, requests, running }, { expired: 3, requests: 15 - refused, running: 0 });
  });

  it('completeAll ends all of its texts when one is refused', async (t) => {
    const model = await open(t, { maxBatch: 1, maxQueue: 1 });
    const all = model.completeAll(Array(9).fill(prompt(8, 1)), { maxTokens: 1000, ignoreEos: true });
    await assert.rejects(all, { code: 'ERR_AT_MOE_QUEUE_FULL' });
    while ((await model.stats()).running > 0) await new Promise((resolve) => setImmediate(resolve));
    assert.ok((await model.stats()).completionTokens < 1000);
  });

  it('a reader that does not read stops its text, a complete does not', async (t) => {
    const model = await open(t, {});
    const options = { maxTokens: 300, ignoreEos: true };
    const pieces = model.generate(prompt(8, 1), options);
    const first = await pieces.next();
    while ((await model.stats()).stalled === 0) await new Promise((resolve) => setImmediate(resolve));
    assert.equal((await model.stats()).completionTokens, 64);
    const whole = await model.complete(prompt(8, 1), options);
    assert.equal(whole.tokens.length, 300);
    const tokens = [...(first.done ? [] : first.value.tokens)];
    for await (const piece of pieces) tokens.push(...piece.tokens);
    assert.deepEqual(tokens, whole.tokens);
  });

  it('options are checked', async (t) => {
    const model = await open(t, {});
    const wrong = [{ priority: 0.5 }, { priority: '1' }, { timeoutMs: 0 }, { timeoutMs: -1 }, { n: 0 }, { n: 1.5 }];
    for (const options of wrong)
      await assert.rejects(model.complete('x', options as object), /TypeError|RangeError|generate/);
    for (const options of [{ maxQueue: -1 }, { stepTokens: 0 }, { hostKvBytes: 0.5 }, { adapterBytes: 0 }, { prefixCache: 1 }])
      await assert.rejects(loadModel(goldenBase, options as object), /loadModel/);
    await assert.rejects(model.score([1], [2], { maxTokens: 5 } as object), TypeError);
  });
});
