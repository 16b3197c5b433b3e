import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import { microBatch, openEngine, startGeneration } from './helpers/engine.js';

const busy = new URL('./helpers/busy.js', import.meta.url);

async function runChild(mode: string): Promise<{ code: number | null; signal: string | null; errors: string }> {
  const child = spawn(process.execPath, [busy.pathname, mode], { stdio: ['ignore', 'ignore', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (chunk) => {
    errors += chunk;
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  return { code, signal, errors };
}

describe('lifecycle', () => {
  for (const mode of ['exit-generating', 'exit-training', 'exit-loading']) {
    it(`process.exit ends the process: ${mode}`, async () => {
      for (let round = 0; round < 3; ++round) {
        assert.deepEqual(await runChild(mode), { code: 7, signal: null, errors: '' });
      }
    });
  }

  it('a process whose engine is idle ends by itself, without dispose', async () => {
    assert.deepEqual(await runChild('idle'), { code: 0, signal: null, errors: '' });
  });

  it('a worker can be terminated in the middle of a job', async () => {
    for (let round = 0; round < 10; ++round) {
      const worker = new Worker(busy, { argv: [round % 2 === 0 ? 'generating' : 'training'] });
      await once(worker, 'message');
      await worker.terminate();
    }
    const engine = await openEngine();
    assert.equal((await startGeneration(engine, {}).done).reason, 'length');
    await engine.dispose();
  });

  it('workers have engines of their own', async () => {
    const workers = [0, 1].map(() => new Worker(busy, { argv: ['tokens'] }));
    const results = await Promise.all(workers.map(async (worker) => (await once(worker, 'message'))[0] as number[]));
    assert.equal(results[0]?.length, 8);
    assert.deepEqual(results[0], results[1]);
  });

  it('dispose ends what runs, may be called twice, and later jobs reject', async () => {
    const engine = await openEngine({ trainable: true });
    const trainer = await engine.beginTraining(null, { target: 'base' });
    const training = assert.rejects(engine.microBatch(trainer, microBatch(40, 40)), { code: 'ERR_AT_MOE_DISPOSED' });
    const generation = startGeneration(engine, { maxTokens: 400 });
    await Promise.all([engine.dispose(), engine.dispose()]);
    await training;
    const done = await generation.done;
    assert.equal(done.reason === 'error' && done.code, 'ERR_AT_MOE_DISPOSED');
    await assert.rejects(engine.memory(), { code: 'ERR_AT_MOE_DISPOSED' });
    const late = await startGeneration(engine, {}).done;
    assert.equal(late.reason === 'error' && late.code, 'ERR_AT_MOE_DISPOSED');
  });

  it('an aborted micro-batch rejects and leaves no gradients behind', async () => {
    const engine = await openEngine({ trainable: true });
    const trainer = await engine.beginTraining(null, { target: 'base' });
    const controller = new AbortController();
    const aborted = assert.rejects(engine.microBatch(trainer, microBatch(40, 40), { signal: controller.signal }), {
      code: 'ERR_AT_MOE_ABORTED',
    });
    setImmediate(() => controller.abort());
    await aborted;
    const norm = Math.hypot(
      ...(await engine.gradients(trainer)).map(({ values }) => Math.hypot(...values.slice(0, 1000))),
    );
    assert.equal(norm, 0);
    await engine.microBatch(trainer, microBatch(2, 8));
    assert.ok((await engine.finishStep(trainer, 1e-3)) > 0);
    await engine.dispose();
  });

  it('an aborted signal rejects before anything starts', async () => {
    const engine = await openEngine();
    const routing = { kind: 'base' } as const;
    const score = engine.score({ ids: Int32Array.of(1, 2), first: 1, routing }, { signal: AbortSignal.abort() });
    await assert.rejects(score, { code: 'ERR_AT_MOE_ABORTED' });
    await engine.dispose();
  });

  it('a generation that is cancelled ends', async () => {
    const engine = await openEngine();
    const generation = startGeneration(engine, { maxTokens: 400 }, () => engine.cancel(generation.id));
    assert.equal((await generation.done).reason, 'cancelled');
    assert.ok(generation.tokens.length < 400);
    const memory = await engine.memory();
    assert.equal(memory.kvFreeTokens, memory.kvTokens);
    await engine.dispose();
  });

  it('200 rounds of load and dispose keep memory bounded', async () => {
    const round = async () => {
      const engine = await openEngine();
      await startGeneration(engine, { maxTokens: 2 }).done;
      await engine.dispose();
    };
    for (let i = 0; i < 50; ++i) await round();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 150; ++i) await round();
    const grown = (process.memoryUsage().rss - before) / 2 ** 20;
    assert.ok(grown < 48, `RSS grew by ${grown.toFixed(1)} MB`);
  });

  it('wrong types throw TypeError and reach no engine', async () => {
    const engine = await openEngine();
    const wrong = { ids: [1, 2] as unknown as Int32Array };
    assert.throws(() => startGeneration(engine, wrong).id, {
      name: 'TypeError',
      message: /ids: expected an Int32Array/,
    });
    await assert.rejects(engine.readMixture('x' as unknown as number, ''), TypeError);
    await assert.rejects(engine.readMixture(77, ''), { code: 'ERR_AT_MOE_DISPOSED' });
    await engine.dispose();
  });
});
