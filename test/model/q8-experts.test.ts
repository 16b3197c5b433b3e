import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { linearModules, type TensorSource } from '../../lib/descriptors.js';
import { moduleShape } from '../../lib/formats/model-folder.js';
import { storedBytes } from '../../lib/formats/q8.js';
import { estimateMemory, loadModel, Mixture } from '../../lib/index.js';
import { golden } from '../formats/support.js';
import { devices } from '../helpers/devices.js';
import { bits, exact, loadBase, loadCase, temporary } from './support.js';

const plain = join(golden, 'llama-token-dense', 'base');
const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 5) % 90);
const inBlocks = { expertWeights: 'q8', threads: 1 } as const;

/** The difference's root mean square over that of the expected values. */
function relative(actual: Float32Array, expected: Float32Array): number {
  const squares = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(actual.map((value, i) => value - (expected[i] as number))) / squares(expected));
}

// Weights are given: a router that reads other values may choose other experts. What a product reads, and its weights, are
// off by 1 / 254 of a block's largest value at most, 1 / 440 in root mean square, which is 0.6 % of normal values (whose
// largest of 32 is about 2.5 times their own). An expert has four of these, in seven linears of each of two layers: 4.3 %
// where nothing else is added.
for (const name of ['llama-token-dense', 'atmoe-paper-general', 'qwen2-token-topk', 'llama3-rope-topp']) {
  test(`${name}: logits of experts in 8 bits are off by less than 4.3 %`, async (t) => {
    const logits = async (settings: object) => {
      const { model, mixture } = await loadCase(t, name, 'cpu', { weights: 'f32', ...settings });
      const experts = mixture.groups.flatMap((group) => group.experts.map((expert) => `${group.name}/${expert}`));
      const weights = Object.fromEntries(experts.map((path) => [path, 1 / experts.length]));
      const { request: routing } = mixture.requestRouting({ experts: weights });
      return await model.core.engine.logits({ ids, first: ids.length, routing });
    };
    const error = relative(await logits(inBlocks), await logits({ threads: 1 }));
    assert.ok(error > 0 && error < 4.3e-2, `${error}`);
  });
}

for (const name of ['atmoe-paper-general', 'qwen2-token-topk']) {
  test(`${name}: a prompt gives the same bits alone, beside others, in pieces and token by token`, async (t) => {
    const { mixture } = await loadCase(t, name, 'cpu', { weights: 'q8', ...inBlocks });
    const prompts = [ids, ids.slice(3, 9), ids.slice(0, 17)];
    const together = await Promise.all(prompts.map((prompt) => mixture.complete(prompt, exact)));
    const cut = await loadCase(t, name, 'cpu', { weights: 'q8', ...inBlocks, threads: 2, stepTokens: 5 });
    for (const [i, prompt] of prompts.entries()) {
      assert.deepEqual(bits(await mixture.complete(prompt, exact)), bits(together[i] as never));
      assert.deepEqual(bits(await cut.mixture.complete(prompt, exact)), bits(together[i] as never));
    }
  });
}

test('a mixture, and an expert of it, are trained with experts in 8 bits; values stay f32', async (t) => {
  const model = await loadBase(t, plain, 'cpu', { weights: 'q8', ...inBlocks });
  const rows = Array.from({ length: 12 }, (_, i) => {
    const start = 5 + 4 * i;
    return { prompt: [start, start + 1, start + 2], completion: [start + 3, start + 4, 2] };
  });
  const options = { epochs: 10, learningRate: 0.02, batchTokens: 72 };
  const mixture = await model.createMixture({ groups: { g: { a: { rank: 32 }, b: { rank: 4 } } } });
  for (const train of [() => mixture.trainExpert('a', rows, options), () => mixture.trainJoint(rows, options)]) {
    const losses: number[] = [];
    for await (const { loss } of train()) losses.push(loss);
    assert.ok((losses.at(-1) as number) < 0.7 * (losses[0] as number), losses.join(' '));
  }
  const evaluated = await mixture.evaluate(rows);
  const dir = join(temporary(t), 'mixture');
  await mixture.save(dir);
  const again = await model.loadMixture(dir);
  assert.equal((await again.evaluate(rows)).loss, evaluated.loss);
  // As they are, they are the same experts up to the rounding of q8, which none of them was saved with.
  const stored = await loadBase(t, plain, 'cpu', { weights: 'q8', threads: 1 });
  const { loss } = await (await stored.loadMixture(dir)).evaluate(rows);
  assert.ok(loss !== evaluated.loss && Math.abs(loss - evaluated.loss) < 0.05 * loss, `${loss} ${evaluated.loss}`);
});

test('memory: blocks of 32 inputs, and numbers where there are fewer', async (t) => {
  const model = await loadBase(t, plain, 'cpu', { weights: 'q8', ...inBlocks });
  const { config } = model;
  for (const [experts, rank] of [
    [8, 8],
    [2, 8],
  ] as const) {
    const g = Object.fromEntries(Array.from({ length: experts }, (_, i) => [`e${i}`, { rank }]));
    using mixture = await model.createMixture({ groups: { g } });
    const { mixtures } = await model.memory();
    const ranks = experts * rank;
    // Fresh experts are f32. Outputs fill their panels; a panel's last block has a line of scales for itself.
    const pairs = linearModules.reduce((sum, module) => {
      const { inFeatures, outFeatures } = moduleShape(config, module);
      const b = storedBytes(ranks < 32 ? 'f32' : 'q8', [outFeatures, ranks]);
      const odd = (rows: number, cols: number) => ((cols / 32) % 2) * (rows / 16) * 32;
      return sum + storedBytes('q8', [ranks, inFeatures]) + odd(ranks, inFeatures) + b + ranks * 8;
    }, 0);
    const router = config.numLayers * (1 + experts) * (config.hiddenSize + 1) * 4;
    const packedRouter = config.numLayers * 16 * config.hiddenSize * 4;
    assert.equal(mixtures, config.numLayers * pairs + router + packedRouter);
    assert.equal(mixture.groups.length, 1);
  }
  const sizes = { experts: 8, rank: 8, kvTokens: 0 };
  assert.equal(model.estimateMemory(sizes).experts, estimateMemory(config, { ...sizes, expertWeights: 'q8' }).experts);
  const [blocks, numbers] = (['q8', 'bf16'] as const).map(
    (expertWeights) => estimateMemory(config, { ...sizes, expertWeights }).experts,
  );
  assert.equal((blocks as number) / (numbers as number), 34 / 64);
});

function withFifth({ name, shape }: TensorSource, value: number): TensorSource {
  const values = new Float32Array(shape.reduce((count, extent) => count * extent, 1)).fill(1);
  values[5] = value;
  return { name, shape, dtype: 'f32', data: new Uint8Array(values.buffer) };
}

test('experts that 8 bits cannot hold are refused', async (t) => {
  const { model, golden: found } = await loadCase(t, 'llama-token-dense', 'cpu', { weights: 'q8', ...inBlocks });
  const change = (value: number): typeof found.mixture => ({
    ...found.mixture,
    groups: found.mixture.groups.map((group) => ({
      ...group,
      experts: group.experts.map(({ name, adapter }) => ({
        name,
        adapter: {
          ...adapter,
          modules: adapter.modules.map((module) => ({ ...module, a: withFifth(module.a, value) })),
        },
      })),
    })),
  });
  (await Mixture.from(model.core, change(8e6))).dispose();
  await assert.rejects(Mixture.from(model.core, change(9e6)), {
    code: 'ERR_AT_MOE_UNSUPPORTED',
    message: /lora_A has the value 9e\+06 at element 5, beyond the largest that q8 can hold/,
  });
});

for (const device of devices.filter((name) => name !== 'cpu')) {
  test(`experts in 8 bits are refused on ${device}`, async (t) => {
    await assert.rejects(loadBase(t, plain, device, inBlocks), { code: 'ERR_AT_MOE_UNSUPPORTED' });
  });
}

test('an unknown storage of experts is a TypeError', async () => {
  await assert.rejects(loadModel(plain, { expertWeights: 'q4' as never }), TypeError);
});
