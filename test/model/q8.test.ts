import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it, type TestContext, test } from 'node:test';
import type { TensorSource } from '../../lib/descriptors.js';
import { modelDescriptor, writeModel } from '../../lib/formats/model-folder.js';
import { quantizationConfig, storedBytes, widenQ8 } from '../../lib/formats/q8.js';
import { readSafetensorsHeader, readSource, readTensor, writeSafetensors } from '../../lib/formats/safetensors.js';
import { type AtMoeErrorCode, loadModel, Mixture, type Model, quantizeModel } from '../../lib/index.js';
import { createEngine } from '../../lib/native.js';
import { defaultRouterOptions } from '../../lib/routing-controls.js';
import { golden } from '../formats/support.js';
import { devices } from '../helpers/devices.js';
import { setVariable } from '../helpers/environment.js';
import { quantized } from '../ops/reference/q8.js';
import { bits, difference, exact, inMemory, loadBase, loadCase, temporary, valuesOf } from './support.js';

const plain = join(golden, 'llama-token-dense', 'base');
const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 5) % 90);
const logitsOf = async (model: Model) =>
  await model.core.engine.logits({ ids, first: ids.length, routing: { kind: 'base' } });

/** A folder in 8 bits beside the one it was made of. */
async function quantizedFolder(t: TestContext, source = plain): Promise<string> {
  const dir = join(temporary(t), 'q8');
  await quantizeModel(source, dir);
  return dir;
}

function rejects(promise: Promise<unknown>, code: AtMoeErrorCode, message: RegExp): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.equal((error as { code?: string }).code, code, String(error));
    assert.match((error as Error).message, message);
    return true;
  });
}

/** Products on the CPU read activations as they are, as those of other devices do: engines of this test. */
const unquantized = (t: TestContext) => t.after(setVariable('AT_MOE_CPU_Q8', 'f32'));

for (const device of devices) {
  describe(`weights of 8 bits on ${device}`, () => {
    // Random weights: their rounding errors add up as little as they do in a trained model.
    for (const name of ['llama-token-dense', 'mistral-window', 'qwen2-token-topk', 'qwen3-headdim']) {
      it(`${name}: logits within 2.5 % of those of f32, activations as they are`, async (t) => {
        unquantized(t);
        const dir = join(golden, name, 'base');
        const expected = await logitsOf(await loadBase(t, dir, device, { weights: 'f32', threads: 1 }));
        const error = difference(
          await logitsOf(await loadBase(t, dir, device, { weights: 'q8', threads: 1 })),
          expected,
        );
        assert.ok(error < 2.5e-2 && error > 0, `${error}`);
      });
    }

    it('logits within 3.5 % of those of f32, quantised activations included', async (t) => {
      for (const name of ['llama-token-dense', 'mistral-window', 'qwen2-token-topk', 'qwen3-headdim']) {
        const dir = join(golden, name, 'base');
        const expected = await logitsOf(await loadBase(t, dir, device, { weights: 'f32', threads: 1 }));
        const error = difference(
          await logitsOf(await loadBase(t, dir, device, { weights: 'q8', threads: 1 })),
          expected,
        );
        assert.ok(error < 3.5e-2, `${name}: ${error}`);
      }
    });

    it('quantised at load, or before: the same bits', async (t) => {
      for (const source of [plain, join(golden, 'llama-bf16-weights', 'base')]) {
        const atLoad = await loadBase(t, source, device, { weights: 'q8', threads: 1 });
        const before = await loadModel(await quantizedFolder(t, source), { device: device as 'cpu', threads: 1 });
        t.after(() => before.dispose());
        assert.equal(before.config.storedType, 'q8');
        assert.deepEqual(await logitsOf(before), await logitsOf(atLoad));
      }
    });

    it('a prompt gives the same bits alone and beside others', async (t) => {
      const { mixture } = await loadCase(t, 'atmoe-paper-general', device, { weights: 'q8', threads: 1 });
      const prompts = [ids, ids.slice(3, 9), ids.slice(0, 17)];
      const together = await Promise.all(prompts.map((prompt) => mixture.complete(prompt, exact)));
      for (const [i, prompt] of prompts.entries()) {
        assert.deepEqual(bits(await mixture.complete(prompt, exact)), bits(together[i] as never));
      }
    });

    it('an expert is trained on it', async (t) => {
      const model = await loadBase(t, plain, device, { weights: 'q8', threads: 1 });
      const adapter = await model.createAdapter({ rank: 4 });
      const rows = Array.from({ length: 12 }, (_, i) => {
        const start = 5 + 4 * i;
        return { prompt: [start, start + 1, start + 2], completion: [start + 3, start + 4, 2] };
      });
      const losses: number[] = [];
      for await (const { loss } of adapter.train(rows, { epochs: 10, learningRate: 0.02, batchTokens: 72 })) {
        losses.push(loss);
      }
      assert.ok((losses.at(-1) as number) < 0.7 * (losses[0] as number), losses.join(' '));
    });
  });
}

/** The model of a folder in 8 bits, and one in f32 of the same values. */
async function bothOf(t: TestContext) {
  unquantized(t);
  const dir = await quantizedFolder(t);
  const blocks = await loadBase(t, dir, 'cpu', { weights: 'q8', threads: 1 });
  const exactly = await loadBase(t, dir, 'cpu', { weights: 'f32', threads: 1 });
  return { blocks, exactly };
}

describe('8 bits on the CPU, activations as they are, compute as f32 weights of the same values, bit for bit', () => {
  it('logits, and generation by a mixture', async (t) => {
    const { blocks, exactly } = await bothOf(t);
    assert.deepEqual(await logitsOf(blocks), await logitsOf(exactly));
    const { golden: found } = await loadCase(t, 'llama-token-dense', 'cpu', { threads: 1 });
    const run = async (model: Model) => {
      const mixture = await Mixture.from(model.core, found.mixture);
      const result = await mixture.complete(ids, { ...exact, trace: true });
      return { ...bits(result), routing: result.routing };
    };
    assert.deepEqual(await run(blocks), await run(exactly));
  });

  it('the gradients of an expert', async (t) => {
    const { blocks, exactly } = await bothOf(t);
    const batch = {
      ids,
      offsets: Int32Array.of(0, 11, 24),
      promptLengths: Int32Array.of(3, 3),
      labels: ids.map((_, i) => (i === 10 || i === 23 ? -100 : (ids[i + 1] as number))),
      stepLossWeight: 22,
      stepTokens: 24,
    };
    const { golden: found } = await loadCase(t, 'llama-token-dense', 'cpu', { threads: 1 });
    const expert = found.mixture.groups[0]?.experts[0]?.adapter;
    assert.ok(expert);
    const run = async (model: Model) => {
      const { engine } = model.core;
      const { mixture } = await engine.createMixture({
        groups: [1],
        experts: [expert.modules],
        scope: 'token',
        options: defaultRouterOptions,
        balance: 1,
        scale: 1,
      });
      const trainer = await engine.beginTraining(mixture, { target: 'adapter' });
      const { loss } = await engine.microBatch(trainer, batch);
      return { loss, gradients: await engine.gradients(trainer) };
    };
    const [own, expected] = [await run(blocks), await run(exactly)];
    assert.ok(expected.gradients.some(({ values }) => values.some((value) => value !== 0)));
    assert.deepEqual(own, expected);
  });
});

test('a quantised folder holds what the definition says, and all else as it was', async (t) => {
  const source = join(golden, 'qwen2-token-topk', 'base'); // biases, and a tied head
  const dir = await quantizedFolder(t, source);
  const before = inMemory((await modelDescriptor(source)).descriptor);
  const { descriptor } = await modelDescriptor(dir);
  assert.equal(descriptor.tensors.length, before.tensors.length);
  for (const tensor of descriptor.tensors) {
    const old = before.tensors.find(({ name }) => name === tensor.name) as TensorSource;
    assert.deepEqual(tensor.shape, old.shape);
    if (tensor.dtype !== 'q8') {
      assert.equal(tensor.dtype, old.dtype);
      assert.deepEqual(Buffer.from(await readSource(tensor)), Buffer.from(old.data as Uint8Array), tensor.name);
      continue;
    }
    const [rows = 0, cols = 0] = tensor.shape;
    const expected = quantized({ rows, cols, data: valuesOf(old) });
    const { scale, ...values } = tensor;
    const [bytes, scales] = [await readSource({ ...values, dtype: 'I8' }), await readSource(scale)];
    assert.deepEqual(new Int8Array(bytes.buffer), expected.values, tensor.name);
    assert.deepEqual(new Uint16Array(scales.buffer), expected.scales, tensor.name);
    assert.deepEqual(widenQ8(bytes, scales, tensor.shape), expected.weights.data);
  }
  assert.ok(descriptor.tensors.some(({ dtype }) => dtype === 'q8'));
  const config = (folder: string) => JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
  assert.deepEqual(config(dir), { ...config(source), quantization_config: quantizationConfig });
});

test('what is written beside the weights is kept, and the folder can be replaced', async (t) => {
  const source = join(temporary(t), 'base');
  cpSync(plain, source, { recursive: true });
  writeFileSync(join(source, 'tokenizer_config.json'), '{"a": 1}');
  const dir = await quantizedFolder(t, source);
  assert.equal(readFileSync(join(dir, 'tokenizer_config.json'), 'utf8'), '{"a": 1}');
  const first = readFileSync(join(dir, 'model.safetensors'));
  await quantizeModel(source, dir);
  assert.deepEqual(readFileSync(join(dir, 'model.safetensors')), first);
});

test('memory: 8.5 bits a weight', async (t) => {
  const model = await loadBase(t, plain, 'cpu', { weights: 'q8', threads: 1 });
  assert.equal(storedBytes('q8', [3, 65]), 3 * (65 + 2 * 3));
  const { tensors } = model.core.descriptor;
  const linears = tensors.filter(({ name }) => /_proj\.weight$|^lm_head/.test(name));
  const blocks = linears.reduce((sum, { shape }) => sum + storedBytes('q8', shape), 0);
  const rest = tensors.filter((tensor) => !linears.includes(tensor));
  const numbers = rest.reduce((sum, { shape }) => sum + storedBytes('f32', shape), 0);
  const { model: used } = await model.memory();
  // Every shape of this model is whole blocks but down_proj's 160 inputs, whose five blocks leave half a line of scales.
  assert.equal(used, blocks + numbers + 2 * (64 / 16) * 32);
  const estimate = model.estimateMemory({ kvTokens: 0 }).model;
  const { vocabSize, hiddenSize } = model.config;
  assert.equal(estimate, blocks + vocabSize * hiddenSize * 2 + numbers - vocabSize * hiddenSize * 4);
});

test('a merged export of a model in 8 bits is a plain model', async (t) => {
  unquantized(t);
  const dir = await quantizedFolder(t);
  const { golden: found } = await loadCase(t, 'llama-token-dense', 'cpu', { threads: 1 });
  const model = await loadBase(t, dir, 'cpu', { threads: 1 });
  const mixture = await Mixture.from(model.core, found.mixture);
  const weights = Object.fromEntries(mixture.groups.flatMap(({ experts }) => experts).map((name) => [name, 0.25]));
  const request = mixture.requestRouting({ experts: weights }).request;
  const expected = await model.core.engine.logits({ ids, first: ids.length, routing: request });
  const merged = join(temporary(t), 'merged');
  await mixture.export(merged, { as: 'merged', weights });
  const loaded = await loadBase(t, merged, 'cpu', { threads: 1 });
  assert.equal(loaded.config.storedType, 'f32');
  assert.ok(difference(await logitsOf(loaded), expected) < 1e-5);
});

describe('errors', () => {
  it('a model with an embedding that a load would refuse is not quantised', async (t) => {
    const source = join(temporary(t), 'source');
    const { tensors } = inMemory((await modelDescriptor(plain)).descriptor);
    const changed = tensors.map((tensor) => {
      const name = tensor.name.replace(/^(?!lm_head)/, 'model.');
      if (tensor.name !== 'embed_tokens.weight') return { ...tensor, name };
      const values = valuesOf(tensor);
      values[3] = Number.NaN;
      return { ...tensor, name, data: new Uint8Array(values.buffer) };
    });
    await writeModel(source, JSON.parse(readFileSync(join(plain, 'config.json'), 'utf8')), changed);
    const message = /embed_tokens\.weight .* not finite at element 3/;
    await rejects(quantizeModel(source, join(source, '..', 'out')), 'ERR_AT_MOE_NOT_FINITE', message);
  });

  it('weights that 8 bits cannot hold, or that are not finite', async (t) => {
    const { descriptor } = await modelDescriptor(plain);
    const loaded = inMemory(descriptor);
    for (const [value, code, message] of [
      [9e6, 'ERR_AT_MOE_UNSUPPORTED', /down_proj\.weight has the value 9e\+06 at element 3, beyond/],
      [Number.NaN, 'ERR_AT_MOE_NOT_FINITE', /down_proj\.weight .* not finite at element 3/],
    ] as const) {
      const tensors = loaded.tensors.map((tensor) => {
        if (tensor.name !== 'layers.0.mlp.down_proj.weight') return tensor;
        const values = valuesOf(tensor);
        values[3] = value;
        return { ...tensor, data: new Uint8Array(values.buffer) };
      });
      const engine = createEngine({ device: 'cpu', threads: 1 });
      t.after(() => engine.dispose());
      await rejects(engine.loadModel({ ...loaded, tensors }, { weights: 'q8' }), code, message);
      const source = join(temporary(t), 'source');
      const renamed = tensors.map((tensor) => ({ ...tensor, name: tensor.name.replace(/^(?!lm_head)/, 'model.') }));
      await writeModel(source, JSON.parse(readFileSync(join(plain, 'config.json'), 'utf8')), renamed);
      await rejects(quantizeModel(source, join(source, '..', 'out')), code, message);
    }
  });

  it('a folder onto itself, and 8 bits once more', async (t) => {
    const dir = await quantizedFolder(t);
    await rejects(quantizeModel(plain, plain), 'ERR_AT_MOE_IO', /itself/);
    await rejects(quantizeModel(dir, join(dir, '..', 'again')), 'ERR_AT_MOE_UNSUPPORTED', /in 8 bits already/);
    await assert.rejects(quantizeModel('', dir), TypeError);
    await assert.rejects(quantizeModel(plain, dir, { weights: 'q4' } as never), TypeError);
  });

  it('a folder that is not as it should be names file and tensor', async (t) => {
    const dir = await quantizedFolder(t);
    const path = join(dir, 'model.safetensors');
    const file = await readSafetensorsHeader(path);
    const name = 'model.layers.1.self_attn.k_proj.weight';
    const all = await Promise.all(
      [...file.tensors.values()].map(async ({ name: own, dtype, shape }) => {
        const { buffer } = await readTensor(file, own);
        return { name: own, dtype, shape, data: new Uint8Array(buffer as ArrayBuffer) };
      }),
    );
    type Tensor = (typeof all)[number];
    const change = (which: string, how: (tensor: Tensor) => Tensor[]) =>
      all.flatMap((tensor) => (tensor.name === which ? how(tensor) : [tensor]));
    const scale = `${name}.scale`;
    const poisoned = (byte: number, at: number) => (tensor: Tensor) => {
      const data = tensor.data.slice();
      data[at] = byte;
      return [{ ...tensor, data }];
    };
    const wrong: [Tensor[], AtMoeErrorCode, RegExp][] = [
      [change(scale, () => []), 'ERR_AT_MOE_MISMATCH', /no tensor ".*k_proj\.weight\.scale" of shape \[32,2\]/],
      [change(name, () => []), 'ERR_AT_MOE_MISMATCH', /no tensor ".*k_proj\.weight" of shape \[32,64\]/],
      [
        change(scale, (tensor) => [{ ...tensor, shape: [2, 32] }]),
        'ERR_AT_MOE_MISMATCH',
        /model\.safetensors: tensor ".*scale" has shape \[2,32\], by .* it is \[32,2\]/,
      ],
      [change(scale, (tensor) => [{ ...tensor, dtype: 'BF16' }]), 'ERR_AT_MOE_MISMATCH', /is BF16, by .* it is F16/],
      [change(name, (tensor) => [{ ...tensor, dtype: 'U8' }]), 'ERR_AT_MOE_MISMATCH', /is U8, by .* it is I8/],
      [
        change(scale, (tensor) => [tensor, { ...tensor, name: 'model.norm.weight.scale' }]),
        'ERR_AT_MOE_MISMATCH',
        /"model\.norm\.weight\.scale" has no place/,
      ],
      [change(name, poisoned(0x80, 7)), 'ERR_AT_MOE_BAD_FILE', /k_proj\.weight has the value -128 at element 7/],
      [change(scale, poisoned(0x7c, 5)), 'ERR_AT_MOE_NOT_FINITE', /k_proj\.weight has a scale .* at element 2/],
    ];
    for (const [tensors, code, message] of wrong) {
      await writeSafetensors(path, tensors);
      await rejects(loadModel(dir, { device: 'cpu', threads: 1 }), code, message);
    }
    writeFileSync(join(dir, 'config.json'), readFileSync(join(plain, 'config.json')));
    await writeSafetensors(path, all);
    await rejects(loadModel(dir, { device: 'cpu' }), 'ERR_AT_MOE_MISMATCH', /scale" has no place/);
  });
});
