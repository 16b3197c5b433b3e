import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { RoutingRequest } from '../../lib/native-mixture-types.js';
import type { NativeEngine, SequenceEvent } from '../../lib/native-types.js';
import { devices } from '../helpers/devices.js';
import { greedy } from '../helpers/engine.js';
import { bits, loadCase, textModel } from '../model/support.js';
import { createMixture, emulated, prompt, withEngine } from './support.js';

const drawn = { maxTokens: 20, temperature: 1, ignoreEos: true, logProbs: true } as const;

for (const device of devices) {
  describe(`n texts for a prompt on ${device}`, () => {
    for (const name of ['llama-token-dense', 'llama-sequence-dense']) {
      it(`${name}: text i is that of a request with seed + i, and the prompt is read once`, async (t) => {
        const { model, mixture } = await loadCase(t, name, device, { prefixCache: false });
        for (const length of emulated(device) ? [21] : [5, 16, 37, 48]) {
          for (const generator of emulated(device) ? [mixture] : [mixture, model]) {
            const ids = prompt(length, length);
            const before = (await model.stats()).promptTokens;
            const options = { ...drawn, ...(emulated(device) && { maxTokens: 3 }) };
            const { choices, usage, ...first } = await generator.complete(ids, { ...options, n: 4, seed: 7 });
            assert.equal((await model.stats()).promptTokens - before, length);
            assert.deepEqual(usage, {
              promptTokens: length,
              completionTokens: 4 * options.maxTokens,
              totalTokens: length + 4 * options.maxTokens,
              cachedTokens: 0,
            });
            assert.deepEqual(choices[0], first);
            assert.equal(new Set(choices.map(({ tokens }) => String(tokens))).size, 4);
            for (const [i, choice] of choices.entries()) {
              const alone = await generator.complete(ids, { ...options, seed: 7 + i });
              assert.deepEqual(bits(choice), bits(alone));
              assert.equal(choice.seed, alone.seed);
            }
          }
        }
        assert.equal((await model.stats()).pagesUsed, 0);
      });
    }
  });
}

describe('n texts for a prompt', () => {
  it('a trace shows the prompt and its own text for each', async (t) => {
    const { mixture } = await loadCase(t, 'llama-token-dense', 'cpu');
    const options = { ...drawn, trace: true, seed: 3 };
    const { choices } = await mixture.complete(prompt(20, 1), { ...options, n: 3 });
    for (const [i, { routing }] of choices.entries()) {
      assert.deepEqual(routing, (await mixture.complete(prompt(20, 1), { ...options, seed: 3 + i })).routing);
    }
  });

  it('pieces carry the index of their text; a stop string ends its own text', async (t) => {
    const model = await textModel(t, 'cpu', { plain: true });
    const options = { maxTokens: 30, temperature: 1, ignoreEos: true, seed: 1 };
    const whole = await model.complete('Where is the cat?', { ...options, n: 3 });
    const stop = whole.choices[1]?.text.slice(8, 14) as string;
    const pieces = model.generate('Where is the cat?', { ...options, n: 3, stop: [stop] });
    const texts = ['', '', ''];
    for (;;) {
      const step = await pieces.next();
      if (step.done) {
        assert.deepEqual(
          step.value.choices?.map(({ text }) => text),
          texts,
        );
        assert.equal(step.value.choices?.[1]?.stop, stop);
        break;
      }
      texts[step.value.index as number] += step.value.text;
    }
    for (const [i, { text }] of whole.choices.entries()) {
      const cut = text.indexOf(stop);
      assert.equal(texts[i], cut < 0 ? text : text.slice(0, cut));
    }
    for await (const _ of model.generate('Where is the cat?', { ...options, n: 3 })) break;
    const { running, queued, stalled, pagesUsed } = await model.stats();
    assert.deepEqual({ running, queued, stalled, pagesUsed }, { running: 0, queued: 0, stalled: 0, pagesUsed: 0 });
  });

  it('wrong uses are told', async (t) => {
    const model = await textModel(t, 'cpu');
    for (const n of [0, 1.5, 'two' as unknown as number]) await assert.rejects(model.complete('Hi', { n }));
    await assert.rejects(model.generateAll(['Hi'], { n: 2 }).next(), RangeError);
    using session = model.createSession();
    await assert.rejects(session.complete('Hi', { n: 2 }), TypeError);
  });

  /** Runs n sequences and cancels some at once; resolves with the tokens and ends of each. */
  async function sequences(
    engine: NativeEngine,
    n: number,
    ids: Int32Array,
    routing: RoutingRequest,
    cancelled: number[],
  ) {
    const tokens: number[][] = Array.from({ length: n }, () => []);
    const ends: string[] = [];
    await new Promise<void>((resolve) => {
      const sampling = { ...greedy, temperature: 1, seed: 40 };
      const request = { ids, n, maxTokens: 30, maxUnread: 5, stopTokens: new Int32Array(), sampling, routing };
      const first = engine.generate(request, (event: SequenceEvent, index) => {
        if (event.type === 'token') tokens[index]?.push(event.token);
        // Unread, a text that is to be cancelled does not end before.
        if (event.type === 'token' && !cancelled.includes(index)) engine.read(first + index, 1);
        if (event.type !== 'done') return;
        ends[index] = event.reason;
        if (ends.filter(Boolean).length === n) resolve();
      });
      for (const index of cancelled) engine.cancel(first + index);
    });
    return { tokens, ends };
  }

  for (const scope of ['token', 'sequence'] as const) {
    it(`texts cancelled while the prompt is read leave the others alone (${scope} scope)`, async () => {
      await withEngine({ stepTokens: 4, chunkRows: 4 }, async (engine) => {
        const routing = { kind: 'mixture', mixture: await createMixture(engine, scope) } as const;
        const whole = await sequences(engine, 4, prompt(90, 1), routing, []);
        for (const cancelled of [[0], [1, 3], [0, 2], [0, 1, 2, 3], [3, 2, 1, 0]]) {
          const { tokens, ends } = await sequences(engine, 4, prompt(90, 1), routing, cancelled);
          for (const i of tokens.keys()) {
            assert.equal(ends[i], cancelled.includes(i) ? 'cancelled' : 'length');
            if (!cancelled.includes(i)) assert.deepEqual(tokens[i], whole.tokens[i]);
          }
        }
      });
    });

    it(`without room for all copies they take turns (${scope} scope)`, async () => {
      const made: number[][][] = [];
      for (const kvTokens of [2048, 64]) {
        await withEngine({ kvTokens, contextLength: 64, prefixCache: false }, async (engine) => {
          const routing = { kind: 'mixture', mixture: await createMixture(engine, scope) } as const;
          made.push((await sequences(engine, 6, prompt(21, 1), routing, [])).tokens);
          if (kvTokens === 64) assert.ok((await engine.stats()).preemptions > 0);
        });
      }
      assert.deepEqual(made[1], made[0]);
    });
  }
});
