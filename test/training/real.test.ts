import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { freshAdapter, freshRouter } from '../../lib/adapter-tensors.js';
import type { TensorSource } from '../../lib/descriptors.js';
import { loadModel, type Model } from '../../lib/model.js';
import type { NamedTensor, TrainTarget } from '../../lib/native-training-types.js';
import { defaultRouterOptions } from '../../lib/routing-controls.js';
import { parseRoutingOptions } from '../../lib/routing-options.js';
import type { TrainingOptions } from '../../lib/training/options.js';
import { evaluateLoss, runTraining, type TrainingContext, type TrainingProgress } from '../../lib/training/run.js';
import { golden } from '../formats/support.js';
import { activationTolerance, devices } from '../helpers/devices.js';

const groups = [
  { name: 'function', experts: ['a', 'b'] },
  { name: 'style', experts: ['c'] },
];

/** Random rows of 4 to 20 ids, in which each id follows from the one before it: something to learn. */
function rows(count: number, first = 0): { prompt: number[]; completion: number[]; experts?: string[] }[] {
  return Array.from({ length: count }, (_, i) => {
    const ids = [3 + ((first + i * 7) % 100)];
    while (ids.length < 4 + ((i * 5) % 17)) ids.push(3 + (((ids.at(-1) as number) * 3 + 1) % 100));
    return { prompt: ids.slice(0, 2), completion: ids.slice(2) };
  });
}

const labelled = (count: number) =>
  rows(count).map((row, i) => ({ ...row, experts: [['a', 'b', 'c'][i % 3] as string] }));

interface Setting {
  device: string;
  target?: TrainTarget;
  scope?: 'token' | 'sequence';
  threads?: number;
}

/** Adapters that are not at their start, so that the router has something to weigh. */
function randomise(source: TensorSource, seed: number): TensorSource {
  const values = Float32Array.from({ length: (source.data as Uint8Array).byteLength / 4 }, (_, i) => {
    return 0.05 * Math.sin(12.9898 * (i + 1) + 78.233 * seed);
  });
  return { ...source, data: new Uint8Array(values.buffer) };
}

async function open(t: TestContext, setting: Setting): Promise<TrainingContext> {
  const { device, target = 'adapter', scope = 'token', threads = 1 } = setting;
  const path = join(golden, 'llama-token-dense', 'base');
  const chosen = device as 'cpu';
  const model: Model = await loadModel(path, { device: chosen, threads, weights: 'f32', trainable: target === 'base' });
  t.after(() => model.dispose());
  const { engine, descriptor } = model.core;
  const { contextLength } = model;
  const context = { engine, mixture: null, target, contextLength, fingerprint: 'tiny' };
  if (target === 'base') return context;
  const alone = target === 'adapter';
  const adapters = [0, 1, 2].map((seed) => freshAdapter({ rank: 4 + seed }, descriptor.config, seed, 'base').modules);
  const sizes = groups.map(({ experts }) => experts.length);
  const routing = parseRoutingOptions({ scope }, false);
  const { mixture } = await engine.createMixture({
    groups: alone ? [1] : sizes,
    experts: alone
      ? adapters.slice(0, 1)
      : adapters.map((modules, seed) => modules.map((module) => ({ ...module, b: randomise(module.b, seed) }))),
    scope,
    options: defaultRouterOptions,
    balance: 1,
    scale: 1,
    ...(!alone && { router: freshRouter(sizes, routing, descriptor.config) }),
  });
  return { ...context, mixture, ...(!alone && { groups }) };
}

interface Outcome {
  progress: TrainingProgress[];
  values: NamedTensor[];
}

async function train(
  t: TestContext,
  setting: Setting,
  options: TrainingOptions,
  stopAfter = Number.POSITIVE_INFINITY,
): Promise<Outcome> {
  const context = await open(t, setting);
  const progress: TrainingProgress[] = [];
  let values: NamedTensor[] = [];
  context.onEnd = async (trainer) => {
    values = (await context.engine.trainerState(trainer)).tensors;
  };
  const data = context.groups ? labelled(12) : rows(12);
  for await (const step of runTraining(context, data, options)) {
    progress.push(step);
    if (progress.length === stopAfter) break;
  }
  return { progress, values };
}

const measured = ({ progress }: Outcome) => progress.map(({ losses, gradientNorm }) => ({ ...losses, gradientNorm }));

function assertSame(actual: Outcome, expected: Outcome): void {
  assert.deepEqual(measured(actual), measured(expected));
  assert.deepEqual(actual.values, expected.values);
}

const balance = { groupBalance: 0.02, expertBalance: 0.01, zLoss: 0.001, entropy: 0.01, supervision: 0.1 };

const settings: [string, Omit<Setting, 'device'>, TrainingOptions][] = [
  ['adapter', { target: 'adapter' }, { dropout: 0.1, randomScale: 0.5, baseKl: 0.1 }],
  ['router by token', { target: 'router' }, { balance }],
  ['router by sequence', { target: 'router', scope: 'sequence' }, { balance }],
  ['joint', { target: 'joint' }, { balance, dropout: 0.1 }],
  ['base', { target: 'base' }, {}],
];

const options: TrainingOptions = { epochs: 2, batchTokens: 64, accumulate: 2, learningRate: 0.01, seed: 5 };

for (const device of devices) {
  for (const [name, setting, own] of settings) {
    const of = { device, ...setting };
    const given = { ...options, ...own };

    test(`${device}: ${name}: resumed bit for bit, with recomputation or two threads the same bits`, async (t) => {
      const dir = mkdtempSync(join(tmpdir(), 'at-moe-training-'));
      t.after(() => rmSync(dir, { recursive: true, force: true }));
      const checkpoint = { dir: join(dir, 'checkpoint'), every: 1 };
      const whole = await train(t, of, given);
      assert.ok(whole.progress.length >= 3);
      await train(t, of, { ...given, checkpoint }, 2);
      const rest = await train(t, of, { ...given, resume: checkpoint.dir });
      assertSame({ progress: [...whole.progress.slice(0, 2), ...rest.progress], values: rest.values }, whole);
      assertSame(await train(t, of, { ...given, recompute: true }), whole);
      assertSame(await train(t, { ...of, threads: 2 }, given), whole);
    });

    test(`${device}: ${name}: the loss goes down, and evaluation agrees`, async (t) => {
      const data = rows(4, 3);
      const context = await open(t, of);
      const evaluated = { epochs: 12, batchTokens: 256, learningRate: 0.01, evaluation: { data, every: 1 } };
      const progress: TrainingProgress[] = [];
      let separate: number | undefined;
      context.onEnd = async () => {
        separate = name === 'base' ? undefined : (await evaluateLoss(context, data)).loss;
      };
      for await (const step of runTraining(context, context.groups ? labelled(12) : rows(12), evaluated))
        progress.push(step);
      const [first, last] = [progress[0] as TrainingProgress, progress.at(-1) as TrainingProgress];
      assert.ok(last.losses.languageModel < first.losses.languageModel);
      assert.ok((last.evaluation?.loss as number) < (first.evaluation?.loss as number));
      if (separate !== undefined) assert.equal(separate, last.evaluation?.loss);
    });
  }

  test(`${device}: accumulated gradients are those of one large batch`, async (t) => {
    const step = { steps: 3, shuffle: false, batchExamples: 12, learningRate: 0.01 };
    const small = await train(t, { device }, { ...step, batchTokens: 24 });
    const large = await train(t, { device }, { ...step, batchTokens: 512 });
    const tolerance = activationTolerance(device);
    for (const [i, { loss, gradientNorm }] of large.progress.entries()) {
      const other = small.progress[i] as TrainingProgress;
      assert.ok(Math.abs(other.loss - loss) < tolerance * loss, `loss ${other.loss} instead of ${loss}`);
      assert.ok(Math.abs(other.gradientNorm - gradientNorm) < tolerance * gradientNorm, 'gradient norm');
    }
  });

  test(`${device}: an abort leaves the engine usable and the steps before it in place`, async (t) => {
    const context = await open(t, { device });
    const controller = new AbortController();
    const reason = new Error('enough');
    const { engine } = context;
    let microBatches = 0;
    const microBatch: typeof engine.microBatch = (...args) => {
      const result = engine.microBatch(...args);
      if (++microBatches === 3) controller.abort(reason); // two of them are a step
      return result;
    };
    const interrupted = new Proxy(engine, {
      get: (of, name: keyof typeof engine) => (name === 'microBatch' ? microBatch : of[name].bind(of)),
    });
    let steps = 0;
    const aborted = async () => {
      const trained = { ...context, engine: interrupted };
      for await (const _ of runTraining(trained, rows(12), { ...options, signal: controller.signal })) steps++;
    };
    await assert.rejects(aborted(), reason);
    assert.equal(steps, 1);
    const one = await open(t, { device });
    for await (const { step } of runTraining(one, rows(12), options)) if (step === 1) break;
    const parameters = async ({ engine, mixture }: TrainingContext) => await engine.readMixture(mixture as number, '');
    assert.deepEqual(await parameters(context), await parameters(one));
    const again = (await runTraining(context, rows(12), { ...options, steps: 1 }).next()).value as TrainingProgress;
    assert.ok(Number.isFinite(again.loss));
  });

  test(`${device}: a fresh adapter scores as the base does, by another path of the engine`, async (t) => {
    const adapter = await evaluateLoss(await open(t, { device }), rows(9), { batchTokens: 32 });
    const base = await evaluateLoss({ ...(await open(t, { device })), mixture: null, target: 'base' }, rows(9));
    assert.equal(adapter.tokens, base.tokens);
    assert.ok(
      Math.abs(adapter.loss - base.loss) < activationTolerance(device) * base.loss,
      `${adapter.loss}, ${base.loss}`,
    );
  });

  test(`${device}: a run that explodes stops before the update that would not be finite`, async (t) => {
    const context = await open(t, { device });
    let values: NamedTensor[] = [];
    context.onEnd = async () => {
      values = await context.engine.readMixture(context.mixture as number, '');
    };
    let done = 0;
    const explode = async () => {
      const wild: TrainingOptions = { epochs: 9, batchTokens: 64, learningRate: 1e30, schedule: 'constant' };
      for await (const { step } of runTraining(context, rows(12), wild)) done = step;
    };
    await assert.rejects(explode(), { code: 'ERR_AT_MOE_NOT_FINITE', message: /step [23]/ });
    assert.ok(done >= 1);
    assert.ok(values.length > 0 && values.every((tensor) => tensor.values.every(Number.isFinite)));
  });
}
