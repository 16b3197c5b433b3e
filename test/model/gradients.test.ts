import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { ModelDescriptor, TensorSource } from '../../lib/descriptors.js';
import { fromFloat32 } from '../../lib/formats/float-types.js';
import { modelDescriptor, modulePath } from '../../lib/formats/model-folder.js';
import { readCase } from '../../lib/golden/case.js';
import { mixtureDescriptor } from '../../lib/mixture-data.js';
import { createEngine } from '../../lib/native.js';
import type { MixtureDescriptor } from '../../lib/native-mixture-types.js';
import type { MicroBatch, NamedTensor, TrainOptions } from '../../lib/native-training-types.js';
import type { NativeEngine } from '../../lib/native-types.js';
import { golden } from '../formats/support.js';
import { inMemory, valuesOf } from './support.js';

/** Two sequences; weights, a base-KL mask and targets, so that every loss has a part. */
function makeBatch(groups: number, experts: number, vocabulary: number): MicroBatch {
  const length = 9;
  const ids = Int32Array.from({ length: 2 * length }, (_, i) => (i * 37 + 5) % vocabulary);
  const labels = ids.map((_, i) => (i % length >= 3 && i % length < length - 1 ? (ids[i + 1] as number) : -100));
  const lossWeights = Float32Array.from(labels, (label, i) => (label < 0 || i === 5 ? 0 : 1 + (i % 3) / 2));
  return {
    ids,
    offsets: Int32Array.of(0, length, 2 * length),
    promptLengths: Int32Array.of(4, 4),
    labels: labels.map((label, i) => ((lossWeights[i] as number) > 0 ? label : -100)),
    lossWeights,
    klMask: Uint8Array.from(ids, (_, i) => (i === 5 || i === 13 ? 1 : 0)),
    groupTarget: Float32Array.from({ length: 2 * groups }, (_, i) => (i % groups === Math.floor(i / groups) ? 1 : 0)),
    expertTarget: Float32Array.from({ length: 2 * experts }, (_, i) => (i % experts === 0 ? 1 : 0)),
    stepLossWeight: lossWeights.reduce((total, weight) => total + weight, 0),
    stepKlRows: 2,
    stepTokens: 2 * length,
  };
}

const coefficients = { groupBalance: 0.3, expertBalance: 0.2, zLoss: 0.05, entropy: -0.1, supervision: 0.2 };

/** `values` moved along `direction` by `step`, as a tensor in memory. */
function moved(tensor: TensorSource, direction: Float32Array, step: number): TensorSource {
  const values = valuesOf(tensor).map((value, i) => value + step * (direction[i] as number));
  return { name: tensor.name, dtype: 'f32', shape: tensor.shape, data: fromFloat32('f32', values) };
}

/**
 * Slopes along the gradient (where it is steepest), and along single entries: the largest and two others. All moves have
 * length 1 times the step.
 */
function directions(gradient: Float32Array, seed: number): Float32Array[] {
  const norm = Math.hypot(...gradient);
  const single = (index: number) => Float32Array.from(gradient, (_, i) => (i === index ? 1 : 0));
  const largest = gradient.reduce(
    (best, value, i) => (Math.abs(value) > Math.abs(gradient[best] as number) ? i : best),
    0,
  );
  const others = [seed * 7919, seed * 104729 + 13].map((at) => at % gradient.length);
  return [gradient.map((value) => value / norm), ...[largest, ...others].map(single)];
}

const dot = (a: Float32Array, b: Float32Array) => a.reduce((total, value, i) => total + value * (b[i] as number), 0);

/** Compares the slope of the loss with the gradient; the loss is f32, so its own error enters divided by the step. */
async function checkSlopes(
  gradients: NamedTensor[],
  chosen: (name: string) => boolean,
  loss: (name: string, direction: Float32Array, step: number) => Promise<number>,
  step: number,
): Promise<number> {
  let checked = 0;
  for (const [index, { name, values }] of gradients.entries()) {
    if (!chosen(name) || values.every((value) => value === 0)) continue;
    for (const [which, direction] of directions(values, index + 1).entries()) {
      const slope = ((await loss(name, direction, step)) - (await loss(name, direction, -step))) / (2 * step);
      const expected = dot(values, direction);
      const limit = 1e-2 * Math.abs(expected) + 3e-6 / step;
      assert.ok(Math.abs(slope - expected) < limit, `${name}, direction ${which}: ${slope}, gradient ${expected}`);
      checked++;
    }
  }
  return checked;
}

async function startEngine(t: TestContext, descriptor: ModelDescriptor, trainable = false): Promise<NativeEngine> {
  const engine = createEngine({ device: 'cpu', threads: 1 });
  t.after(() => engine.dispose());
  await engine.loadModel(descriptor, { weights: 'f32', trainable, maxBatch: 1, contextLength: 32 });
  return engine;
}

/** Loss and, if asked for, gradients of a mixture that has just been made. */
async function evaluate(engine: NativeEngine, descriptor: MixtureDescriptor, options: TrainOptions, batch: MicroBatch) {
  const { mixture } = await engine.createMixture(descriptor);
  const trainer = await engine.beginTraining(mixture, options);
  const { loss, auxiliary } = await engine.microBatch(trainer, batch);
  const gradients = await engine.gradients(trainer);
  await engine.endTraining(trainer);
  engine.releaseMixture(mixture);
  return { loss: loss + auxiliary, gradients };
}

/** The descriptor with one tensor, named as in the engine, replaced. */
function replaced(
  descriptor: MixtureDescriptor,
  name: string,
  change: (tensor: TensorSource) => TensorSource,
): MixtureDescriptor {
  const swap = (prefix: string, modules: MixtureDescriptor['experts'][number]) =>
    modules.map((module) => {
      const path = `${prefix}layers.${module.layer}.${modulePath(module.module)}.lora_`;
      if (name === `${path}A`) return { ...module, a: change(module.a) };
      return name === `${path}B` ? { ...module, b: change(module.b) } : module;
    });
  return {
    ...descriptor,
    experts: descriptor.experts.map((modules, e) => swap(`experts.${e}.`, modules)),
    ...(descriptor.general && { general: swap('general.', descriptor.general) }),
    router: descriptor.router?.map((tensor) => (name === `router.${tensor.name}` ? change(tensor) : tensor)),
  };
}

const cases = ['atmoe-paper-general', 'scale-learned', 'atmoe-static-scores', 'llama-sequence-dense'];
for (const name of cases) {
  test(`${name}: router, experts and general adapter follow the slope of all losses`, async (t) => {
    const found = await readCase(join(golden, name));
    const engine = await startEngine(t, found.base.descriptor);
    const descriptor = mixtureDescriptor(found.mixture);
    const batch = makeBatch(descriptor.groups.length, descriptor.experts.length, 90);
    const options: TrainOptions = { target: 'joint', coefficients, baseKl: 0.5 };
    const { gradients } = await evaluate(engine, descriptor, options, batch);
    const chosen = (tensor: string) =>
      /^router\.layers\.[01]\./.test(tensor) ||
      /^(experts\.1|general)\.layers\.(0\.self_attn\.[qo]|1\.(self_attn\.v|mlp\.(gate|down)))_proj/.test(tensor);
    const checked = await checkSlopes(
      gradients,
      chosen,
      async (tensor, direction, step) => {
        const changed = replaced(descriptor, tensor, (source) => moved(source, direction, step));
        return (await evaluate(engine, changed, options, batch)).loss;
      },
      1e-2,
    );
    assert.ok(checked >= 40, `${checked} slopes`);
  });
}

for (const name of ['qwen2-token-topk', 'qwen3-headdim', 'llama-token-dense']) {
  test(`${name}: all parameters of the base follow the slope of the loss`, async (t) => {
    const { descriptor: onDisk } = await modelDescriptor(join(golden, name, 'base'));
    const descriptor = inMemory(onDisk);
    const batch = makeBatch(1, 1, 90);
    const { groupTarget: _, expertTarget: __, klMask: ___, stepKlRows: ____, ...plain } = batch;
    const run = async (changed: ModelDescriptor) => {
      const engine = await startEngine(t, changed, true);
      const trainer = await engine.beginTraining(null, { target: 'base' });
      const { loss } = await engine.microBatch(trainer, plain);
      const gradients = await engine.gradients(trainer);
      await engine.dispose();
      return { loss, gradients };
    };
    const { gradients } = await run(descriptor);
    assert.deepEqual(
      gradients.map((tensor) => tensor.name).sort(),
      descriptor.tensors.map((tensor) => tensor.name).sort(),
    );
    const checked = await checkSlopes(
      gradients,
      (tensor) => /^(layers\.1\.|embed|norm|lm_head)/.test(tensor),
      async (tensor, direction, step) => {
        const tensors = descriptor.tensors.map((source) =>
          source.name === tensor ? moved(source, direction, step) : source,
        );
        return (await run({ ...descriptor, tensors })).loss;
      },
      1e-2,
    );
    assert.ok(checked >= 40, `${checked} slopes`);
  });
}
