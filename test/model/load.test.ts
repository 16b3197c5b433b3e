import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it, type TestContext, test } from 'node:test';
import type { StorageType, TensorSource } from '../../lib/descriptors.js';
import { bytesPerElement, fromFloat32 } from '../../lib/formats/float-types.js';
import { parseModelConfig } from '../../lib/formats/model-config.js';
import { expectedTensors, modelDescriptor, tensorKey, writeModel } from '../../lib/formats/model-folder.js';
import { createEngine } from '../../lib/native.js';
import { devices } from '../helpers/devices.js';
import { type Device, numbers, temporary } from './support.js';

// No extent is a multiple of 16, none of 32: every panel and every block has a tail.
const config = {
  model_type: 'llama',
  hidden_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 20,
  intermediate_size: 50,
  vocab_size: 70,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
};

/** A folder of a few values; returns its tensors. */
async function folder(t: TestContext, dtype: StorageType, changes: object = {}): Promise<TensorSource[]> {
  const dir = join(temporary(t), 'base');
  const json = { ...config, ...changes };
  const tensors = [...expectedTensors(parseModelConfig(dir, json))].map(([name, shape]) => {
    const count = shape.reduce((product, extent) => product * extent, 1);
    const values = Float32Array.from({ length: count }, (_, i) => ((i % 7) - 3) / 8);
    return { name: tensorKey(name), shape, dtype, data: fromFloat32(dtype, values) };
  });
  await writeModel(dir, json, tensors);
  return (await modelDescriptor(dir)).descriptor.tensors.map(numbers);
}

/** Puts a value into an element of a tensor's file, and what was there back after `work`. */
async function poisoned(source: TensorSource, element: number, value: number, work: () => Promise<void>) {
  const { file, offset = 0, dtype } = source;
  const descriptor = openSync(file as string, 'r+');
  const place = offset + element * bytesPerElement[dtype];
  const before = new Uint8Array(bytesPerElement[dtype]);
  try {
    readSync(descriptor, before, 0, before.length, place);
    writeSync(descriptor, fromFloat32(dtype, Float32Array.of(value)), 0, before.length, place);
    await work();
    writeSync(descriptor, before, 0, before.length, place);
  } finally {
    closeSync(descriptor);
  }
}

interface Load {
  weights: StorageType | 'q8';
  device?: Device;
  threads?: number;
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

async function load(tensors: TensorSource[], { weights, device = 'cpu', threads = 2, ...job }: Load, changes = {}) {
  const engine = createEngine({ device, threads });
  try {
    const parsed = parseModelConfig('config.json', { ...config, ...changes }).config;
    await engine.loadModel({ config: parsed, tensors }, { weights }, job);
  } finally {
    await engine.dispose();
  }
}

const names = [
  'embed_tokens.weight',
  'layers.0.self_attn.k_proj.weight',
  'layers.1.mlp.down_proj.weight',
  'layers.1.post_attention_layernorm.weight',
  'lm_head.weight',
];

for (const device of devices) {
  describe(`a value that cannot be stored, on ${device}`, () => {
    for (const dtype of ['f32', 'f16', 'bf16'] as const) {
      for (const weights of ['f32', 'f16', 'bf16', 'q8'] as const) {
        it(`of ${dtype} into ${weights}: tensor and element are told, wherever it lies`, async (t) => {
          const tensors = await folder(t, dtype);
          for (const name of names) {
            const source = tensors.find((tensor) => tensor.name === name) as TensorSource;
            const elements = source.shape.reduce((product, extent) => product * extent, 1);
            const cols = source.shape.at(-1) as number;
            for (const element of new Set([0, cols - 1, Math.floor(elements / 2), elements - cols, elements - 1])) {
              const value = element % 2 ? Number.NaN : Number.NEGATIVE_INFINITY;
              await poisoned(source, element, value, async () => {
                await assert.rejects(load(tensors, { weights, device: device as Device }), {
                  code: 'ERR_AT_MOE_NOT_FINITE',
                  message: new RegExp(`${name} has a value that is not finite at element ${element}$`),
                });
              });
            }
          }
          await load(tensors, { weights, device: device as Device });
        });
      }
    }
  });
}

for (const device of devices) {
  for (const dtype of ['f32', 'bf16'] as const) {
    test(`a value of ${dtype} beyond the largest f16 is refused where weights are f16, on ${device}`, async (t) => {
      const tensors = await folder(t, dtype);
      const source = tensors.find(({ name }) => name === 'layers.1.mlp.down_proj.weight') as TensorSource;
      const refused = {
        code: 'ERR_AT_MOE_UNSUPPORTED',
        message: /down_proj\.weight has the value -65536 at element 33/,
      };
      await poisoned(source, 33, -65280, () => load(tensors, { weights: 'f16', device: device as Device }));
      await poisoned(source, 33, -65536, async () => {
        await assert.rejects(load(tensors, { weights: 'f16', device: device as Device }), refused);
        await load(tensors, { weights: 'bf16', device: device as Device });
      });
    });
  }
}

test('of several bad values the first in the file is told', async (t) => {
  const tensors = await folder(t, 'bf16');
  const [first, second] = ['layers.0.mlp.up_proj.weight', 'lm_head.weight'].map((name) =>
    tensors.find((tensor) => tensor.name === name),
  ) as [TensorSource, TensorSource];
  const inOrder = (first.offset as number) < (second.offset as number) ? [first, second] : [second, first];
  await poisoned(inOrder[0] as TensorSource, 900, Number.NaN, () =>
    poisoned(inOrder[0] as TensorSource, 1999, Number.NaN, () =>
      poisoned(inOrder[1] as TensorSource, 5, Number.NaN, async () => {
        await assert.rejects(load(tensors, { weights: 'bf16' }), {
          message: new RegExp(`${(inOrder[0] as TensorSource).name} .* element 900$`),
        });
      }),
    ),
  );
});

describe('a table of several steps', () => {
  const changes = { vocab_size: 450_001 };

  it('is told of as it is loaded, checked to its last row, and can be left in between', async (t) => {
    const tensors = await folder(t, 'bf16', changes);
    const seen: [number, number][] = [];
    await load(tensors, { weights: 'bf16', onProgress: (...told) => void seen.push(told) }, changes);
    const total = tensors.reduce(
      (sum, { shape }) => sum + 2 * shape.reduce((product, extent) => product * extent, 1),
      0,
    );
    assert.ok(seen.length > 1);
    assert.deepEqual(seen.at(-1), [total, total]);
    for (const [i, [done, all]] of seen.entries()) {
      assert.ok(done > (seen[i - 1]?.[0] ?? 0) && all === total);
    }

    const head = tensors.find(({ name }) => name === 'lm_head.weight') as TensorSource;
    const last = changes.vocab_size * config.hidden_size - 1;
    await poisoned(head, last, Number.NaN, async () => {
      await assert.rejects(load(tensors, { weights: 'bf16' }, changes), { message: new RegExp(`element ${last}$`) });
    });

    const controller = new AbortController();
    const reports: number[] = [];
    const onProgress = (done: number) => void reports.push(done);
    const aborted = load(tensors, { weights: 'bf16', signal: controller.signal, onProgress }, changes);
    controller.abort();
    await assert.rejects(aborted, { code: 'ERR_AT_MOE_ABORTED' });
    assert.ok(!reports.includes(total));
  });
});
