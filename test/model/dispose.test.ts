// What is used after dispose(), and what dispose() ends.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { temporary, textModel } from './support.js';

const disposed = { name: 'AtMoeError', code: 'ERR_AT_MOE_DISPOSED' };
const rows = Array.from({ length: 4 }, (_, i) => ({ prompt: 'Where is the cat?', completion: ` ${i} and so on` }));

async function* endless() {
  for (;;) yield* rows;
}

async function open(t: TestContext) {
  const model = await textModel(t, 'cpu');
  const groups = { a: { x: { rank: 2 }, y: { rank: 2 } } };
  const mixture = await model.createMixture({ groups, general: { rank: 2 } });
  return {
    model,
    mixture,
    other: await model.createMixture({ groups }),
    adapter: await model.createAdapter({ rank: 2 }),
  };
}

type Opened = Awaited<ReturnType<typeof open>>;

/** What makes text, by whatever a test disposes of. */
const writes = (target: Opened['model'] | Opened['mixture'] | Opened['adapter']) => ({
  generate: () => target.generate('a').next(),
  complete: () => target.complete('a'),
  generateAll: () => target.generateAll(['a', 'b']).next(),
  completeAll: () => target.completeAll(['a', 'b']),
  score: () => target.score('a', ' b'),
  explain: () => target.explain('a'),
  createSession: () => target.createSession(),
  evaluate: () => target.evaluate(rows),
});

function uses({ model, mixture, adapter }: Opened, dir: string) {
  return {
    model: {
      ...writes(model),
      train: () => model.train(rows).next(),
      createMixture: () => model.createMixture({ groups: { a: { b: {} } } }),
      createAdapter: () => model.createAdapter(),
      loadMixture: () => model.loadMixture(dir),
      loadAdapter: () => model.loadAdapter(dir),
      compileResponseFormat: () => model.compileResponseFormat({ type: 'json_object' }),
      memory: () => model.memory(),
      stats: () => model.stats(),
    },
    mixture: {
      ...writes(mixture),
      trainExpert: () => mixture.trainExpert('x', rows).next(),
      trainGeneral: () => mixture.trainGeneral(rows).next(),
      trainRouter: () => mixture.trainRouter(rows).next(),
      trainJoint: () => mixture.trainJoint(rows).next(),
      replace: () => mixture.replace(dir),
      addExpert: () => mixture.addExpert('a', 'z', { rank: 2 }),
      removeExpert: () => mixture.removeExpert('x'),
      replaceExpert: () => mixture.replaceExpert('x', { rank: 2 }),
      save: () => mixture.save(dir),
      'export peft': () => mixture.export(dir, { as: 'peft', weights: { x: 1 } }),
      'export merged': () => mixture.export(dir, { as: 'merged', weights: { x: 1 } }),
    },
    adapter: { ...writes(adapter), train: () => adapter.train(rows).next(), save: () => adapter.save(dir) },
  };
}

describe('dispose', () => {
  for (const kind of ['model', 'mixture', 'adapter'] as const) {
    it(`every use of a disposed ${kind} says so`, async (t) => {
      const opened = await open(t);
      await opened[kind].dispose();
      for (const [what, call] of Object.entries(uses(opened, join(temporary(t), 'x'))[kind]))
        await assert.rejects(async () => await call(), disposed, what);
      await opened[kind].dispose();
    });
  }

  it("a disposed mixture cannot take another one's place, nor one whose model is disposed be used", async (t) => {
    const opened = await open(t);
    opened.other.dispose();
    await assert.rejects(opened.mixture.replace(opened.other), disposed);
    await opened.model.dispose();
    const { mixture, adapter } = uses(opened, join(temporary(t), 'x'));
    for (const [what, call] of Object.entries({ ...mixture, ...adapter }))
      await assert.rejects(async () => await call(), disposed, what);
    opened.mixture.dispose();
  });

  it('a change of a mixture that is disposed meanwhile is refused and leaves nothing in the engine', async (t) => {
    const { model, mixture, other, adapter } = await open(t);
    const changed = mixture.addExpert('a', 'z', { rank: 2 });
    mixture.dispose();
    await assert.rejects(changed, disposed);
    other.dispose();
    adapter.dispose();
    assert.equal((await model.memory()).mixtures, 0);
  });

  const runs = {
    'trainExpert of a mixture': ({ mixture }: Opened) => [mixture, mixture.trainExpert('x', endless(), steps)] as const,
    'trainRouter of a mixture': ({ mixture }: Opened) => [mixture, mixture.trainRouter(endless(), steps)] as const,
    'trainJoint of a mixture': ({ mixture }: Opened) => [mixture, mixture.trainJoint(endless(), steps)] as const,
    'train of an adapter': ({ adapter }: Opened) => [adapter, adapter.train(endless(), steps)] as const,
    'training by a disposed model': ({ model, mixture }: Opened) =>
      [model, mixture.trainRouter(endless(), steps)] as const,
  };
  const steps = { steps: 1e6, batchTokens: 64 };
  for (const [what, begin] of Object.entries(runs)) {
    it(`ends ${what}, in a step and between two`, { timeout: 60_000 }, async (t) => {
      for (const between of [false, true]) {
        const opened = await open(t);
        const [target, run] = begin(opened);
        assert.equal((await run.next()).done, false);
        const step = between ? undefined : run.next();
        const ended = step && assert.rejects(step, disposed);
        const closed = target.dispose();
        if (between && target !== opened.model) {
          for (const each of [opened.mixture, opened.other, opened.adapter]) each.dispose();
          // Its end is a job of its own, beside that of asking.
          for (let asked = 0; ; asked++) {
            const { mixtures, trainers } = await opened.model.memory();
            if (mixtures + trainers === 0) break;
            assert.ok(asked < 1000, `${mixtures} and ${trainers} bytes are held`);
          }
        }
        await ended;
        if (between) await assert.rejects(run.next(), disposed);
        assert.equal((await run.next()).done, true);
        await closed;
        if (target !== opened.model) await opened.model.complete('Where is the cat?', { maxTokens: 2 });
      }
    });
  }

  it('ends training that waits for its data, and an evaluation', { timeout: 60_000 }, async (t) => {
    const { mixture, adapter } = await open(t);
    async function* stuck() {
      yield* rows.slice(0, 1);
      await new Promise(() => setInterval(() => undefined, 1000).unref());
      yield* rows;
    }
    const waits = assert.rejects(mixture.trainRouter(stuck(), { steps: 9 }).next(), disposed);
    const evaluation = assert.rejects(adapter.evaluate(Array(200).fill(rows[0])), disposed);
    setTimeout(() => {
      mixture.dispose();
      adapter.dispose();
    }, 5);
    await Promise.all([waits, evaluation]);
  });
});
