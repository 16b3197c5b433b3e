import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { RoutingRequest } from '../../lib/native-mixture-types.js';
import type { GenerateRequest, NativeEngine } from '../../lib/native-types.js';
import { devices } from '../helpers/devices.js';
import { microBatch, startGeneration } from '../helpers/engine.js';
import { bits, exact, loadCase } from '../model/support.js';
import { createMixture, emulated, prompt, withEngine } from './support.js';

async function run(engine: NativeEngine, request: Partial<GenerateRequest>) {
  const { tokens, done, traces } = startGeneration(engine, request);
  const { usage } = await done;
  return { tokens, traces, cached: usage.cachedTokens };
}

/** A prompt that begins as another one does. */
const branch = (shared: number, length: number, seed: number) =>
  Int32Array.of(...prompt(shared, 1), ...prompt(length - shared, seed + 50));

for (const device of devices) {
  describe(`prefix cache on ${device}`, () => {
    const names = ['llama-token-dense', 'llama-sequence-dense', 'mistral-window', 'atmoe-paper-general'];
    const prompts = [branch(48, 60, 1), branch(48, 70, 2), branch(20, 50, 3), prompt(32, 1)];
    const options = emulated(device) ? { ...exact, maxTokens: 2 } : exact;
    for (const name of emulated(device) ? names.slice(0, 1) : names) {
      it(`${name}: the same bits with the cache and without`, async (t) => {
        const results = [];
        for (const prefixCache of [false, true]) {
          const { model, mixture, golden } = await loadCase(t, name, device, { prefixCache });
          const expert = golden.mixture.groups[0]?.experts[0]?.name as string;
          const made = [];
          for (let turn = 0; turn < 2; turn++) {
            for (const ids of emulated(device) ? prompts.slice(0, 2) : prompts) {
              for (const routing of [{}, { only: expert }, { experts: { [expert]: 0.5 } }, { bias: { [expert]: 1 } }]) {
                made.push(await mixture.complete(ids, { ...options, routing }));
              }
              made.push(await model.complete(ids, options));
              made.push(await mixture.complete(ids, { ...options, temperature: 1, seed: 5, trace: true }));
              const score = await mixture.score([...ids.subarray(0, 40)], [...ids.subarray(20)]);
              made.push({ tokens: score.tokens, logProbs: score.logProbs });
            }
          }
          const { hitTokens, lookedUpTokens, pagesUsed } = await model.stats();
          assert.equal(pagesUsed, 0);
          assert.ok(
            prefixCache ? hitTokens > 0.4 * lookedUpTokens : hitTokens === 0,
            `${hitTokens} of ${lookedUpTokens}`,
          );
          results.push(made.map((result) => ({ ...bits(result), routing: 'routing' in result && result.routing })));
        }
        assert.deepEqual(results[1], results[0]);
      });
    }
  });
}

describe('prefix cache', () => {
  it('finds full pages of prompts that begin alike, under the same routing alone', async () => {
    await withEngine({}, async (engine) => {
      const token = await createMixture(engine, 'token');
      const other = await createMixture(engine, 'token');
      const bias = Float32Array.of(1, 0);
      const weights = (first: number) => Float32Array.of(first, 0, 0, 0);
      const routings: RoutingRequest[] = [
        { kind: 'base' },
        { kind: 'mixture', mixture: token },
        { kind: 'mixture', mixture: other },
        { kind: 'mixture', mixture: token, controls: { groupBias: bias } },
        { kind: 'fixed', mixture: token, weights: weights(1), alone: false },
        { kind: 'fixed', mixture: token, weights: weights(0.5), alone: false },
        { kind: 'fixed', mixture: token, weights: weights(1), alone: true },
      ];
      for (const routing of routings) {
        assert.equal((await run(engine, { ids: branch(40, 60, 1), routing })).cached, 0);
        assert.equal((await run(engine, { ids: branch(40, 60, 2), routing })).cached, 32);
        // A token is computed in any case.
        assert.equal((await run(engine, { ids: prompt(32, 1), routing })).cached, 16);
      }
      const { hitTokens, lookedUpTokens, pagesCached } = await engine.stats();
      assert.equal(hitTokens, 7 * 48);
      assert.equal(lookedUpTokens, 7 * (59 + 59 + 31));
      assert.ok(pagesCached > 0);
    });
  });

  it('a prompt that is routed as a whole is found as a whole, with its routing', async () => {
    await withEngine({}, async (engine) => {
      const routing = { kind: 'mixture', mixture: await createMixture(engine, 'sequence') } as const;
      const first = await run(engine, { ids: branch(40, 60, 1), routing, trace: true });
      assert.equal((await run(engine, { ids: branch(40, 60, 2), routing })).cached, 0);
      assert.equal((await run(engine, { ids: prompt(40, 1), routing })).cached, 0);
      const again = await run(engine, { ids: branch(40, 60, 1), routing, trace: true });
      assert.equal(again.cached, 48);
      assert.deepEqual(again.tokens, first.tokens);
      assert.deepEqual(again.traces[0]?.records, first.traces[0]?.records);
      const scored = { ids: Int32Array.of(...branch(40, 60, 1), ...first.tokens), first: 60, routing };
      const before = (await engine.stats()).hitTokens;
      await engine.score(scored);
      assert.equal((await engine.stats()).hitTokens - before, 48);
      const denied = { ...routing, controls: { groupDenied: Uint8Array.of(1, 0) } };
      assert.equal((await run(engine, { ids: branch(40, 60, 1), routing: denied })).cached, 0);
    });
  });

  it('an answer is found as the beginning of the next prompt', async () => {
    await withEngine({}, async (engine) => {
      const first = await run(engine, { ids: prompt(20, 1), maxTokens: 30 });
      const next = Int32Array.of(...prompt(20, 1), ...first.tokens, 5, 6, 7);
      assert.equal((await run(engine, { ids: next })).cached, 48);
    });
  });

  it('a token trace shows every token', async () => {
    await withEngine({}, async (engine) => {
      const routing = { kind: 'mixture', mixture: await createMixture(engine, 'token') } as const;
      const request = { ids: prompt(40, 1), routing, trace: true };
      const first = await run(engine, request);
      assert.deepEqual(await run(engine, request), first);
      assert.equal(
        first.traces.reduce((sum, { rows }) => sum + rows, 0),
        47,
      );
    });
  });

  it('pages without a holder are given away, those unused for longest first, the ends of texts before their beginnings', async () => {
    await withEngine({ kvTokens: 128, contextLength: 128 }, async (engine) => {
      const ids = (seed: number) => prompt(49, seed);
      const short = { maxTokens: 1 };
      await run(engine, { ids: ids(1), ...short });
      await run(engine, { ids: ids(2), ...short });
      assert.equal((await engine.stats()).pagesCached, 6);
      await run(engine, { ids: ids(1), ...short });
      // Needs four pages, two are free: the second prompt gives up its last two.
      await run(engine, { ids: ids(3), ...short });
      assert.equal((await run(engine, { ids: ids(1), ...short })).cached, 48);
      assert.equal((await run(engine, { ids: ids(2), ...short })).cached, 16);
    });
  });

  it('what is computed again after preemption is found where it is still there', async () => {
    const made: number[][][] = [];
    for (const prefixCache of [false, true]) {
      await withEngine({ kvTokens: 96, contextLength: 64, prefixCache }, async (engine) => {
        const mixture = await createMixture(engine, 'sequence');
        const started = [1, 2, 3, 1].map((seed) =>
          startGeneration(engine, {
            ids: prompt(18, seed),
            maxTokens: 40,
            maxUnread: 1,
            routing: { kind: 'mixture', mixture } as const,
          }),
        );
        // With a token of each there are keys of more pages than the cache has.
        while (started.some(({ tokens }) => tokens.length === 0)) await new Promise((resolve) => setImmediate(resolve));
        for (const { id } of started) engine.read(id, 1000);
        await Promise.all(started.map(({ done }) => done));
        made.push(started.map(({ tokens }) => tokens));
        assert.ok((await engine.stats()).preemptions > 0);
      });
    }
    assert.deepEqual(made[1], made[0]);
  });

  it('pages of weights that have been trained since are not used', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'token');
      const request = { ids: prompt(40, 1), routing: { kind: 'mixture', mixture } as const };
      await run(engine, request);
      assert.equal((await run(engine, request)).cached, 32);
      const trainer = await engine.beginTraining(mixture, { target: 'joint' });
      await engine.microBatch(trainer, microBatch(2, 8));
      await engine.finishStep(trainer, 1e-2);
      await engine.endTraining(trainer);
      const anew = await run(engine, request);
      assert.equal(anew.cached, 0);
      const again = await run(engine, request);
      assert.equal(again.cached, 32);
      assert.deepEqual(again.tokens, anew.tokens);
    });
  });

  it('a session that goes back leaves the pages of others as they are', async () => {
    await withEngine({}, async (engine) => {
      const first = await run(engine, { ids: prompt(40, 1), session: { id: 1 } });
      const expected = await run(engine, { ids: Int32Array.of(...prompt(25, 1), 7, 8, 9) });
      const back = await run(engine, { ids: Int32Array.of(7, 8, 9), session: { id: 1, keep: 25 } });
      assert.deepEqual(back.tokens, expected.tokens);
      assert.equal(back.cached, 25);
      assert.deepEqual((await run(engine, { ids: prompt(40, 1) })).tokens, first.tokens);
      engine.releaseSession(1);
    });
  });
});
