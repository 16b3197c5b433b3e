import assert from 'node:assert/strict';
import { cpSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { Model } from '../../lib/model.js';
import type { MixtureHandle } from '../../lib/native-mixture-types.js';
import type { GenerateRequest, LoadOptions, NativeEngine } from '../../lib/native-types.js';
import { devices } from '../helpers/devices.js';
import { goldenBase, microBatch, mixtureDescriptor, openEngine, startGeneration } from '../helpers/engine.js';
import { expertDir, loadBase, loadCase, temporary } from '../model/support.js';
import { emulated, prompt, withEngine } from './support.js';

const scopeOf = (i: number) => (i % 2 === 0 ? ('token' as const) : ('sequence' as const));
/** The third is an adapter alone. */
const describeMixture = (i: number) => mixtureDescriptor(scopeOf(i), i % 3 !== 2, 10 * i);

async function createMixtures(engine: NativeEngine, count: number): Promise<MixtureHandle[]> {
  const handles: MixtureHandle[] = [];
  for (let i = 0; i < count; i++) handles.push((await engine.createMixture(await describeMixture(i))).mixture);
  return handles;
}

/** Of the largest one. */
async function mixtureBytes(device: string): Promise<number> {
  const engine = await openEngine({}, device);
  const { deviceBytes } = await engine.createMixture(await describeMixture(0));
  await engine.dispose();
  return deviceBytes;
}

const requestOf = (mixtures: MixtureHandle[], i: number): Partial<GenerateRequest> => {
  const mixture = mixtures[i] as MixtureHandle;
  const alone = { kind: 'fixed' as const, mixture, weights: Float32Array.of(1), alone: true };
  return { ids: prompt(5, i), maxTokens: 6, routing: i % 3 === 2 ? alone : { kind: 'mixture', mixture } };
};

const codeOf = async ({ done }: ReturnType<typeof startGeneration>) => {
  const end = await done;
  return end.reason === 'error' ? end.code : end.reason;
};

/** Texts of each mixture's request where all are on the device. */
async function textsOf(device: string, count: number, more: Partial<GenerateRequest> = {}): Promise<number[][]> {
  const engine = await openEngine({}, device);
  const mixtures = await createMixtures(engine, count);
  const texts = [];
  for (let i = 0; i < count; i++) {
    const generation = startGeneration(engine, { ...requestOf(mixtures, i), ...more });
    await generation.done;
    texts.push(generation.tokens);
  }
  await engine.dispose();
  return texts;
}

/** Runs `body` while a job uses the mixture, and with it all the room there is. */
async function whileHeld(engine: NativeEngine, mixture: MixtureHandle, body: (end: () => void) => Promise<void>) {
  const stop = new AbortController();
  const routings = [{ kind: 'mixture' as const, mixture }];
  const request = { kind: 'decode' as const, rows: 1, context: 1, steps: 1e9, routings, interleave: true };
  const job = engine.bench(request, { signal: stop.signal }).catch((error) => error);
  for (let i = 0; i < 3; i++) await engine.stats(); // a unit of the job lies between two answers
  try {
    await body(() => stop.abort());
  } finally {
    stop.abort();
    await job;
  }
}

for (const device of devices) {
  const withMixtures = async (
    count: number,
    options: Partial<LoadOptions> & { places: number },
    body: (engine: NativeEngine, mixtures: MixtureHandle[], budget: number) => Promise<void>,
  ) => {
    const { places, ...limits } = options;
    const adapterBytes = places * (await mixtureBytes(device));
    const run = async (engine: NativeEngine) => body(engine, await createMixtures(engine, count), adapterBytes);
    await withEngine({ ...limits, adapterBytes }, run, device);
  };

  describe(`mixtures beyond the device's memory on ${device}`, () => {
    it('random requests over six in the room of two get the texts they get alone', async () => {
      const count = emulated(device) ? 4 : 6;
      const requests = emulated(device) ? 10 : 200;
      const alone = await textsOf(device, count);
      for (const prefixCache of emulated(device) ? [false] : [false, true]) {
        await withMixtures(count, { places: 2, maxBatch: 4, prefixCache }, async (engine, mixtures, budget) => {
          const order = Array.from({ length: requests }, (_, i) => (i * i + (i >> 2)) % count);
          const generations = order.map((i) => startGeneration(engine, requestOf(mixtures, i)));
          for (const [n, generation] of generations.entries()) {
            assert.equal(await codeOf(generation), 'length');
            assert.deepEqual(generation.tokens, alone[order[n] as number]);
          }
          const stats = await engine.stats();
          assert.equal(stats.adapterBudget, budget);
          assert.ok(stats.adapterPeakBytes <= budget, `${stats.adapterPeakBytes} of ${budget}`);
          assert.ok(stats.adapterBytes > 0);
          assert.equal(stats.adapterHits + stats.adapterMisses, requests);
          assert.ok(stats.adapterMisses > 0);
          assert.ok(stats.adapterEvictions > 0);
          assert.equal(stats.adapterLoads - stats.adapterEvictions, stats.adaptersResident);
          assert.equal((await engine.memory()).mixtures, stats.adapterBytes, 'as the allocator counts');
        });
      }
    });

    it('what is pinned stays, and what has no place beside it is refused', async () => {
      const [, , , text] = await textsOf(device, 4);
      await withMixtures(4, { places: 2 }, async (engine, mixtures, budget) => {
        const [a, b, c] = mixtures as [number, number, number, number];
        await engine.pinMixture(a);
        for (const i of [1, 3, 1]) {
          await startGeneration(engine, requestOf(mixtures, i)).done;
          const { adapterLoads } = await engine.stats();
          await startGeneration(engine, requestOf(mixtures, 0)).done;
          assert.equal((await engine.stats()).adapterLoads, adapterLoads);
        }
        await engine.pinMixture(b);
        await engine.pinMixture(b);
        assert.equal((await engine.stats()).adaptersPinned, 2);
        const full = {
          code: 'ERR_AT_MOE_OUT_OF_MEMORY',
          message: new RegExp(`needs \\d+ bytes.* ${budget}.*\\d+ are pinned`),
        };
        await assert.rejects(engine.pinMixture(c), full);
        await assert.rejects(
          engine.logits({ ids: prompt(4, 1), first: 2, routing: { kind: 'mixture', mixture: mixtures[3] as number } }),
          full,
        );
        assert.equal(await codeOf(startGeneration(engine, requestOf(mixtures, 3))), 'ERR_AT_MOE_OUT_OF_MEMORY');
        engine.unpinMixture(b);
        const served = startGeneration(engine, requestOf(mixtures, 3));
        assert.equal(await codeOf(served), 'length');
        assert.deepEqual(served.tokens, text);
        engine.releaseMixture(a);
        const { adaptersPinned, adaptersResident } = await engine.stats();
        assert.deepEqual({ adaptersPinned, adaptersResident }, { adaptersPinned: 0, adaptersResident: 1 });
      });
    });

    it('one that is larger than the budget is refused', async () => {
      const bytes = await mixtureBytes(device);
      await withEngine(
        { adapterBytes: bytes - 1 },
        async (engine) => {
          const message = `the mixture needs ${bytes} bytes, adapterBytes is ${bytes - 1}`;
          await assert.rejects(engine.createMixture(await describeMixture(0)), {
            code: 'ERR_AT_MOE_OUT_OF_MEMORY',
            message,
          });
          assert.equal((await engine.stats()).adapterPeakBytes, 0);
        },
        device,
      );
    });

    it('a text goes on step by step while others are loaded', async () => {
      await withMixtures(4, { places: 2 }, async (engine, mixtures) => {
        const most = emulated(device) ? 40 : 500;
        let done = 0; // tokens of texts that have ended
        const progress = async () => {
          const { steps, completionTokens } = await engine.stats();
          return { steps, tokens: completionTokens - done };
        };
        // Again, if the long text was done too early.
        for (let checked = 0; checked === 0; done += most) {
          const long = startGeneration(engine, { ...requestOf(mixtures, 0), ids: prompt(1, 1), maxTokens: most });
          let before = await progress();
          for (let i = 0; before.tokens < most; i++) {
            await startGeneration(engine, { ...requestOf(mixtures, 1 + (i % 3)), maxTokens: 2 }).done;
            done += 2;
            const after = await progress();
            if (before.tokens > 0 && after.tokens < most) {
              assert.equal(after.tokens - before.tokens, after.steps - before.steps);
              checked++;
            }
            before = after;
          }
          assert.equal(await codeOf(long), 'length');
        }
        assert.ok((await engine.stats()).adapterEvictions > 0);
      });
    });

    it('a load that takes many steps holds up none of them', async (t) => {
      const rank = emulated(device) ? 64 : 2048;
      const large = (model: Model) => model.createMixture({ groups: { g: { e: { rank } } } });
      const free = await loadBase(t, goldenBase, device);
      await large(free);
      const { adapterBytes } = await free.stats();
      const model = await loadBase(t, goldenBase, device, { adapterBytes });
      const mixtures = [await large(model), await large(model)];
      const { engine } = model.core;
      const seen = new Set<number>();
      for (let i = 0; seen.size < 3; i++) {
        assert.ok(i < 20, 'no step went by during a load');
        const long = startGeneration(engine, { maxTokens: 480 });
        const other = (mixtures[i % 2] as (typeof mixtures)[0]).complete(prompt(2, 1), { maxTokens: 1 });
        let waiting = true;
        other.finally(() => {
          waiting = false;
        });
        for (seen.clear(); waiting; ) {
          const { steps, queued, running } = await engine.stats();
          if (queued > 0 && running > 0) seen.add(steps);
        }
        engine.cancel(long.id);
        await Promise.all([long.done, other]);
      }
    });

    it('requests that wait for room let others pass, and can be aborted, expire, or outlive their mixture', async () => {
      const texts = await textsOf(device, 2);
      await withMixtures(2, { places: 1 }, async (engine, mixtures) => {
        const [used, other] = mixtures as [number, number];
        const replacement = await engine.createMixture(await describeMixture(3));
        await startGeneration(engine, requestOf(mixtures, 0)).done;
        await whileHeld(engine, used, async (end) => {
          const waiting = Array.from({ length: 3 }, () => startGeneration(engine, requestOf(mixtures, 1)));
          const [first, second, third] = waiting as [(typeof waiting)[0], (typeof waiting)[0], (typeof waiting)[0]];
          const late = startGeneration(engine, { ...requestOf(mixtures, 1), timeoutMs: 1 });
          const passing = startGeneration(engine, requestOf(mixtures, 0));
          const base = startGeneration(engine, {});
          assert.equal(await codeOf(passing), 'length');
          assert.deepEqual(passing.tokens, texts[0]);
          assert.equal(await codeOf(base), 'length');
          assert.equal(await codeOf(late), 'ERR_AT_MOE_DEADLINE');
          engine.cancel(second.id);
          assert.equal(await codeOf(second), 'cancelled');
          engine.releaseMixture(other);
          const again = startGeneration(engine, requestOf(mixtures, 1));
          assert.equal(await codeOf(again), 'ERR_AT_MOE_DISPOSED');
          const { queued, running, adaptersResident } = await engine.stats();
          assert.deepEqual({ queued, running, adaptersResident }, { queued: 2, running: 0, adaptersResident: 1 });
          end();
          for (const one of [first, third]) {
            assert.equal(await codeOf(one), 'length');
            assert.deepEqual(one.tokens, texts[1]);
          }
          const routing = { kind: 'mixture' as const, mixture: replacement.mixture };
          assert.equal(await codeOf(startGeneration(engine, { routing })), 'length');
        });
      });
    });

    it('dispose() ends requests and jobs that wait for room', async () => {
      const adapterBytes = await mixtureBytes(device);
      const engine = await openEngine({ adapterBytes }, device);
      const mixtures = await createMixtures(engine, 2);
      await startGeneration(engine, requestOf(mixtures, 0)).done;
      await whileHeld(engine, mixtures[0] as number, async () => {
        const waiting = startGeneration(engine, requestOf(mixtures, 1));
        const pin = engine.pinMixture(mixtures[1] as number).catch((error) => error.code);
        await engine.stats();
        await engine.dispose();
        assert.equal(await codeOf(waiting), 'ERR_AT_MOE_DISPOSED');
        assert.equal(await pin, 'ERR_AT_MOE_DISPOSED');
      });
    });

    it('a stream of requests to what is on the device starves nobody', async () => {
      await withMixtures(2, { places: 1, maxBatch: 2 }, async (engine, mixtures) => {
        const more = emulated(device) ? 24 : 60;
        const start = (i: number) => startGeneration(engine, { ...requestOf(mixtures, i), maxTokens: 3 });
        const first = Array.from({ length: 3 }, () => start(0));
        await startGeneration(engine, { maxTokens: 1 }).done; // the first ones are in the batch
        const other = start(1);
        const stream = Array.from({ length: more }, () => start(0));
        let before = 0;
        for (const { done } of [...first, ...stream]) done.then(() => before++);
        await other.done;
        assert.ok(before < 15 + 3 + 2 + 1, `${before} were served before it`);
        for (const one of stream) assert.equal(await codeOf(one), 'length');
      });
    });

    it('a session that goes from one mixture to another is computed again with each', async () => {
      const turns = async (engine: NativeEngine, mixtures: MixtureHandle[]) => {
        const texts: number[][] = [];
        for (const i of [0, 1, 3]) {
          const turn = { ...requestOf(mixtures, i), maxTokens: 8, session: { id: 1, reroute: true } };
          const generation = startGeneration(engine, turn);
          assert.equal(await codeOf(generation), 'length');
          texts.push(generation.tokens);
          // Takes the session's pages.
          await startGeneration(engine, { ids: prompt(60, 1), maxTokens: 4 }).done;
        }
        engine.releaseSession(1);
        return texts;
      };
      const limits = { kvTokens: 64, contextLength: 64, prefixCache: false, hostKvBytes: 0 };
      const free = await openEngine(limits, device);
      const expected = await turns(free, await createMixtures(free, 4));
      await free.dispose();
      await withMixtures(4, { places: 1, ...limits }, async (engine, mixtures) => {
        assert.deepEqual(await turns(engine, mixtures), expected);
        assert.ok((await engine.stats()).adapterEvictions > 3);
      });
    });

    it('training pins a mixture, whose values outlive an eviction', async () => {
      const train = async (engine: NativeEngine, mixtures: MixtureHandle[]) => {
        const trained = mixtures[0] as number;
        const options = { target: 'joint' as const, coefficients: {}, seed: 1 };
        const trainer = await engine.beginTraining(trained, options);
        for (let step = 0; step < 2; step++) {
          await engine.microBatch(trainer, microBatch(2, 6));
          await startGeneration(engine, requestOf(mixtures, 1)).done;
          await engine.finishStep(trainer, 1e-2);
          await startGeneration(engine, requestOf(mixtures, 3)).done;
        }
        const { adaptersPinned } = await engine.stats();
        await engine.endTraining(trainer);
        for (const i of [1, 3, 1]) await startGeneration(engine, requestOf(mixtures, i)).done;
        const text = startGeneration(engine, requestOf(mixtures, 0));
        await text.done;
        const again = await engine.beginTraining(trained, options);
        await engine.microBatch(again, microBatch(2, 6));
        await engine.finishStep(again, 1e-2);
        await engine.endTraining(again);
        for (const i of [1, 3, 1]) await startGeneration(engine, requestOf(mixtures, i)).done;
        const values = (await engine.readMixture(trained, '')).map((tensor) => [tensor.name, tensor.values]);
        return { adaptersPinned, text: text.tokens, values };
      };
      const free = await openEngine({}, device);
      const expected = await train(free, await createMixtures(free, 4));
      await free.dispose();
      await withMixtures(4, { places: 2 }, async (engine, mixtures) => {
        assert.deepEqual(await train(engine, mixtures), expected);
        const { adapterEvictions, adaptersPinned } = await engine.stats();
        assert.ok(adapterEvictions > 4);
        assert.equal(adaptersPinned, 0);
      });
    });

    it('a file that changes after it was loaded changes no text', async (t) => {
      const found = 'llama-token-dense';
      const bytes = 1 << 20;
      const { model, golden } = await loadCase(t, found, device, { adapterBytes: bytes });
      const group = golden.mixture.groups[0];
      const dir = join(temporary(t), 'adapter');
      cpSync(expertDir(found, `${group?.name}/${group?.experts[0]?.name}`), dir, { recursive: true });
      const adapter = await model.loadAdapter(dir);
      const options = { maxTokens: 4, ignoreEos: true };
      const before = await adapter.complete(prompt(5, 1), options);
      truncateSync(join(dir, 'adapter_model.safetensors'), 0);
      const { adapterBytes, adapterEvictions } = await model.stats();
      const others = [];
      while ((await model.stats()).adapterEvictions === adapterEvictions) {
        const [made] = [await model.createMixture({ groups: { g: { e: { rank: 64 } } } })];
        others.push(await made.complete(prompt(3, 1), { maxTokens: 1 }));
        assert.ok(others.length * adapterBytes < 100 * bytes);
      }
      assert.deepEqual((await adapter.complete(prompt(5, 1), options)).tokens, before.tokens);
    });
  });
}
