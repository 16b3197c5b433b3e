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

  it('a call is queued as a whole or refused as a whole, each of its texts counted', async (t) => {
    const model = await open(t, { maxBatch: 1, maxQueue: 3 });
    const ids = prompt(8, 1);
    const options = { maxTokens: 2, ignoreEos: true };
    const fits = {
      'n: 3': () => model.complete(ids, { ...options, n: 3 }),
      '3 prompts': () => model.completeAll([ids, ids, ids], options),
    };
    const doesNot = {
      'n: 4': () => model.complete(ids, { ...options, n: 4 }),
      '4 prompts': () => model.completeAll([ids, ids, ids, ids], options),
      '4 prompts, as they come': () => model.generateAll([ids, ids, ids, ids], options).next(),
    };
    const refusal = { code: 'ERR_AT_MOE_QUEUE_FULL' };
    // Its reader stops it at 64 unread tokens, so that it has the only place up to then.
    const busy = () => model.generate(ids, { ...options, maxTokens: 400, priority: 9 });
    const whileBusy = async (call: () => Promise<unknown>) => {
      for (;;) {
        const before = await model.stats();
        const one = busy();
        await one.next();
        const answer = call().then(
          () => 'done',
          (error) => error.code,
        );
        const { queued, stalled, running } = await model.stats();
        await one.return(undefined as never);
        const end = await answer;
        const { requests } = await model.stats();
        if (stalled === 0) return { end, queued, running, requests: requests - before.requests - 1 };
      }
    };
    for (const [what, call] of Object.entries(fits)) assert.equal((await whileBusy(call)).end, 'done', what);
    for (const [what, call] of Object.entries(doesNot)) {
      const { end, requests } = await whileBusy(call);
      assert.deepEqual({ end, requests }, { end: refusal.code, requests: 0 }, what);
    }
    // With a free place there is room for one more.
    for (const call of Object.values(doesNot)) await call();
    await assert.rejects(model.complete(ids, { ...options, n: 5 }), refusal);
    assert.equal((await model.stats()).refused, 1 + 4 + 4 + 1);
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

  it('a context beyond what the model was made for is lowered, with one warning', async (t) => {
    const warnings: (Error & { code?: string })[] = [];
    const hear = (warning: Error) => void warnings.push(warning);
    process.on('warning', hear);
    t.after(() => process.off('warning', hear));
    const usual = await open(t, {});
    const most = usual.config.maxPositionEmbeddings;
    assert.equal((await open(t, { contextLength: most })).contextLength, most);
    assert.equal((await open(t, { contextLength: most + 1 })).contextLength, most);
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(
      warnings.map(({ code }) => code),
      ['AT_MOE_CONTEXT_LENGTH'],
    );
    assert.match(`${warnings[0]?.message}`, new RegExp(`${most + 1} .*max_position_embeddings.* ${most}$`));
  });

  it('options are checked', async (t) => {
    const model = await open(t, {});
    await assert.rejects(loadModel(goldenBase, { threads: 100_000 }), {
      name: 'RangeError',
      message: /^loadModel: threads: at most \d+, 4 for each logical processor$/,
    });
    const wrong = [{ priority: 0.5 }, { priority: '1' }, { timeoutMs: 0 }, { timeoutMs: -1 }, { n: 0 }, { n: 1.5 }];
    for (const options of wrong)
      await assert.rejects(model.complete('x', options as object), /TypeError|RangeError|generate/);
    for (const options of [
      { maxQueue: -1 },
      { stepTokens: 0 },
      { hostKvBytes: 0.5 },
      { adapterBytes: 0 },
      { prefixCache: 1 },
    ])
      await assert.rejects(loadModel(goldenBase, options as object), /loadModel/);
    await assert.rejects(model.score([1], [2], { maxTokens: 5 } as object), TypeError);
  });
});
