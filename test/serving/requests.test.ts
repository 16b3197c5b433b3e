import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { GenerateRequest, NativeEngine, SessionRequest } from '../../lib/native-types.js';
import { type Generation, openEngine, startGeneration } from '../helpers/engine.js';
import { createMixture, prompt, withEngine } from './support.js';

/** Runs `body` while one sequence has the only place in the batch; tries again if that ended before `body` begins. */
async function whileBusy(
  engine: NativeEngine,
  queue: () => Generation[],
  body: (waiting: Generation[], busy: Generation) => Promise<void>,
): Promise<void> {
  for (;;) {
    const busy = startGeneration(engine, { maxTokens: 400 });
    const waiting = queue();
    const { queued, running } = await engine.stats();
    if (queued + running === waiting.length + 1) {
      await body(waiting, busy);
      return;
    }
    for (const { id } of [busy, ...waiting]) engine.cancel(id);
    await Promise.all([busy, ...waiting].map(({ done }) => done));
  }
}

const code = async ({ done }: Generation) => {
  const end = await done;
  return end.reason === 'error' ? end.code : end.reason;
};

describe('requests', () => {
  it('higher priority is served first, equal ones in the order of arrival', async () => {
    await withEngine({ maxBatch: 1 }, async (engine) => {
      const priorities = [0, 5, 0, -2, 5, 9];
      let order: number[] = [];
      const queue = () => {
        order = [];
        return priorities.map((priority, i) => {
          const generation = startGeneration(engine, { priority, maxTokens: 2 });
          generation.done.then(() => order.push(i));
          return generation;
        });
      };
      await whileBusy(engine, queue, async (waiting, busy) => {
        engine.cancel(busy.id);
        await Promise.all(waiting.map(({ done }) => done));
        // The busy one was displaced by those above its priority and went on before its equals.
        assert.deepEqual(order, [5, 1, 4, 0, 2, 3]);
      });
    });
  });

  it('a request of low priority is not passed over for ever', async () => {
    await withEngine({ maxBatch: 1 }, async (engine) => {
      let before = 0;
      const queue = () => {
        before = 0;
        const low = startGeneration(engine, { priority: -1, maxTokens: 2 });
        const high = Array.from({ length: 60 }, () => startGeneration(engine, { priority: 1, maxTokens: 2 }));
        let served = 0;
        for (const { done } of high) done.then(() => served++);
        low.done.then(() => {
          before = served;
        });
        return [low, ...high];
      };
      await whileBusy(engine, queue, async (waiting, busy) => {
        engine.cancel(busy.id);
        await Promise.all(waiting.map(({ done }) => done));
        // One that arrived before it may have been passed over as often.
        assert.ok(before >= 15 && before <= 32, `${before} of 60 were served before it`);
      });
    });
  });

  it('a running sequence gives its place to a higher priority and goes on later without changing a token', async () => {
    await withEngine({ maxBatch: 1 }, async (engine) => {
      const request = { ids: prompt(9, 1), maxTokens: 480 };
      const alone = startGeneration(engine, request);
      await alone.done;
      for (let preemptions = 0; preemptions === 0; ) {
        let higher: Generation | undefined;
        const ends: string[] = [];
        const displaced = startGeneration(engine, request, () => {
          higher ??= startGeneration(engine, { priority: 1, maxTokens: 5 });
          higher.done.then(() => ends.push('higher'));
        });
        await displaced.done.then(() => ends.push('displaced'));
        assert.deepEqual(displaced.tokens, alone.tokens);
        await higher?.done;
        // Unless the text was done before the other request was heard of.
        ({ preemptions } = await engine.stats());
        if (preemptions > 0) assert.equal(ends[0], 'higher');
      }
    });
  });

  it('more than maxQueue waiting requests are refused at once', async () => {
    await withEngine({ maxBatch: 1, maxQueue: 2 }, async (engine) => {
      for (;;) {
        const busy = startGeneration(engine, { maxTokens: 400 });
        const others = Array.from({ length: 4 }, () => startGeneration(engine, { maxTokens: 2 }));
        const score = engine.score({ ids: prompt(4, 1), first: 2, routing: { kind: 'base' } }).catch((error) => error);
        const { queued, running, refused } = await engine.stats();
        engine.cancel(busy.id);
        const codes = await Promise.all(others.map(code));
        const scored = await score;
        await busy.done;
        // With the busy one done too early there was room for more.
        if (queued + running !== 3) continue;
        assert.deepEqual(codes, ['length', 'length', 'ERR_AT_MOE_QUEUE_FULL', 'ERR_AT_MOE_QUEUE_FULL']);
        assert.equal(scored.code, 'ERR_AT_MOE_QUEUE_FULL');
        assert.ok(refused >= 3);
        break;
      }
    });
    await withEngine({ maxBatch: 4, maxQueue: 0 }, async (engine) => {
      const codes = await Promise.all(Array.from({ length: 4 }, () => code(startGeneration(engine, {}))));
      assert.deepEqual(codes, ['length', 'length', 'length', 'length'], 'free places count');
    });
  });

  for (const [what, options] of Object.entries({
    'a text': { maxUnread: 450 },
    'a slow reader': { maxUnread: 2 },
    'a session': { maxUnread: 2, session: { id: 3 } },
  } as Record<string, Partial<GenerateRequest>>)) {
    it(`a deadline ends ${what}`, async () => {
      await withEngine({}, async (engine) => {
        const late = startGeneration(engine, { maxTokens: 500, timeoutMs: 5, ...options });
        assert.equal(await code(late), 'ERR_AT_MOE_DEADLINE');
        assert.equal((await engine.stats()).expired, 1);
        if (options.session) engine.releaseSession((options.session as SessionRequest).id);
      });
    });
  }

  it('a deadline ends a request that waits, and a prompt that is being read', async () => {
    await withEngine({ maxBatch: 1 }, async (engine) => {
      const busy = startGeneration(engine, { maxTokens: 500 });
      const waits = startGeneration(engine, { timeoutMs: 0.1, maxTokens: 500 });
      assert.equal(await code(waits), 'ERR_AT_MOE_DEADLINE');
      engine.cancel(busy.id);
      await busy.done;
    });
    await withEngine({ stepTokens: 1, chunkRows: 1 }, async (engine) => {
      for (const scope of ['token', 'sequence'] as const) {
        const routing = { kind: 'mixture', mixture: await createMixture(engine, scope) } as const;
        const reads = startGeneration(engine, { ids: prompt(500, 1), routing, timeoutMs: 0.1 });
        assert.equal(await code(reads), 'ERR_AT_MOE_DEADLINE');
        assert.deepEqual(reads.tokens, []);
      }
    });
  });

  it('a request is cancelled while it waits, is read, and writes', async () => {
    await withEngine({ maxBatch: 1, stepTokens: 1, chunkRows: 1 }, async (engine) => {
      const mixture = await createMixture(engine, 'sequence');
      for (const routing of [{ kind: 'base' }, { kind: 'mixture', mixture }] as const) {
        for (;;) {
          const reads = startGeneration(engine, { ids: prompt(500, 1), routing, maxUnread: 1 });
          const waits = startGeneration(engine, { routing, priority: -1, maxTokens: 500 });
          engine.cancel(waits.id);
          assert.equal(await code(waits), 'cancelled');
          engine.cancel(reads.id);
          assert.equal(await code(reads), 'cancelled');
          // Else the whole prompt was read before it was cancelled.
          if (reads.tokens.length === 0) break;
        }
        const writes = startGeneration(engine, { maxTokens: 500, maxUnread: 450 }, () => engine.cancel(writes.id));
        assert.equal(await code(writes), 'cancelled');
      }
    });
  });

  it('a slow reader stops its own sequence and no other', async () => {
    await withEngine({ maxBatch: 1, prefixCache: false }, async (engine) => {
      const request = { ids: prompt(20, 1), maxTokens: 40 };
      const alone = startGeneration(engine, request);
      await alone.done;
      const slow = startGeneration(engine, { ...request, maxUnread: 8 });
      // Behind it in the only place of the batch.
      const other = startGeneration(engine, request);
      await other.done;
      assert.deepEqual(other.tokens, alone.tokens);
      assert.equal(slow.tokens.length, 8);
      const { stalled, running, pagesUsed } = await engine.stats();
      assert.deepEqual({ stalled, running }, { stalled: 1, running: 0 });
      assert.ok(pagesUsed > 0, 'its keys are kept');
      engine.read(slow.id, 3);
      while (slow.tokens.length < 11) await new Promise((resolve) => setImmediate(resolve));
      assert.equal((await engine.stats()).stalled, 1);
      engine.read(slow.id, 1000);
      await slow.done;
      assert.deepEqual(slow.tokens, alone.tokens);
    });
  });

  it('a slow reader gives its pages to others and computes them again', async () => {
    await withEngine({ kvTokens: 64, contextLength: 64, prefixCache: false }, async (engine) => {
      const request = { ids: prompt(20, 1), maxTokens: 40 };
      const alone = startGeneration(engine, request);
      await alone.done;
      const slow = startGeneration(engine, { ...request, maxUnread: 8 });
      while (slow.tokens.length < 8) await new Promise((resolve) => setImmediate(resolve));
      const other = startGeneration(engine, { ids: prompt(50, 2) });
      await other.done;
      const { preemptions, pagesUsed } = await engine.stats();
      assert.deepEqual({ preemptions, pagesUsed }, { preemptions: 1, pagesUsed: 0 });
      engine.read(slow.id, 1000);
      await slow.done;
      assert.deepEqual(slow.tokens, alone.tokens);
    });
  });

  it('a long prompt stops neither texts that are written nor shorter prompts', async () => {
    await withEngine({ stepTokens: 4, chunkRows: 4, maxBatch: 4, prefixCache: false }, async (engine) => {
      const mixtures = {
        token: await createMixture(engine, 'token'),
        sequence: await createMixture(engine, 'sequence'),
      };
      for (const long of ['token', 'sequence'] as const) {
        for (const short of ['token', 'sequence'] as const) {
          const events: string[] = [];
          const request = (length: number, scope: 'token' | 'sequence', name: string) =>
            startGeneration(
              engine,
              { ids: prompt(length, 5), routing: { kind: 'mixture', mixture: mixtures[scope] }, maxTokens: 1 },
              () => events.push(name),
            );
          const writer = startGeneration(engine, { maxTokens: 400 }, () => events.push('token'));
          while (writer.tokens.length === 0) await new Promise((resolve) => setImmediate(resolve));
          const longer = request(300, long, 'long');
          const shorter = request(12, short, 'short');
          await Promise.all([longer.done, shorter.done]);
          engine.cancel(writer.id);
          await writer.done;
          assert.ok(events.indexOf('short') < events.indexOf('long'), `${short} waited for ${long}`);
          const between = events.slice(0, events.indexOf('long')).filter((event) => event === 'token').length;
          assert.ok(between >= 300 / 4, `${between} tokens before the end of a prompt of 300`);
        }
      }
    });
  });

  it('the engine sleeps while all sequences wait for their readers, and wakes to be disposed of', async () => {
    const engine = await openEngine();
    const slow = startGeneration(engine, { maxTokens: 100, maxUnread: 1 });
    while (slow.tokens.length === 0) await new Promise((resolve) => setImmediate(resolve));
    const { steps } = await engine.stats();
    assert.equal((await engine.stats()).steps - steps <= 1, true, 'it goes on stepping');
    await engine.dispose();
    assert.equal(await code(slow), 'ERR_AT_MOE_DISPOSED');
  });
});
