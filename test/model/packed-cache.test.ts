import assert from 'node:assert/strict';
import {
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, it, type TestContext, test } from 'node:test';
import { packedName } from '../../lib/formats/packed-file.js';
import { readSafetensorsHeader, writeSafetensors } from '../../lib/formats/safetensors.js';
import { type LoadModelOptions, loadModel } from '../../lib/index.js';
import { golden } from '../formats/support.js';
import { devices } from '../helpers/devices.js';
import { temporary } from './support.js';

const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 5) % 90);

/** A copy of a golden case's base. */
function folder(t: TestContext, name = 'llama-token-dense'): string {
  const dir = join(temporary(t), 'model');
  cpSync(join(golden, name, 'base'), dir, { recursive: true });
  return dir;
}

interface Loaded {
  logits: Float32Array;
  mapped: number;
  model: number;
  warnings: string[];
  /** Of the estimate, the bytes that are mapped. */
  estimated: number;
}

/** Loads, computes logits, and frees; with the warnings of the cache. */
async function load(dir: string, options: LoadModelOptions = {}): Promise<Loaded> {
  const warnings: string[] = [];
  const listen = (warning: Error & { code?: string }) => {
    if (warning.code === 'AT_MOE_PACKED_CACHE') warnings.push(warning.message);
  };
  process.on('warning', listen);
  const loaded = await loadModel(dir, { device: 'cpu', threads: 2, maxBatch: 1, packedCache: true, ...options });
  try {
    const logits = await loaded.core.engine.logits({ ids, first: ids.length, routing: { kind: 'base' } });
    const { mapped, model } = await loaded.memory();
    return { logits, mapped, model, warnings, estimated: loaded.estimateMemory().mapped };
  } finally {
    await loaded.dispose();
    process.off('warning', listen);
  }
}

const keyOf = async (path: string) => (await readSafetensorsHeader(path)).metadata.key;

describe('a file of packed weights', () => {
  const cases = [
    ['llama-token-dense', 'f32'],
    ['llama-token-dense', 'f16'],
    ['llama-bf16-weights', 'bf16'],
    ['qwen2-token-topk', 'q8'],
    ['qwen3-headdim', 'q8'],
  ] as const;
  for (const [name, weights] of cases) {
    it(`${name} in ${weights}: the same bits as without`, async (t) => {
      const dir = folder(t, name);
      const plain = await load(dir, { weights, packedCache: false });
      assert.equal(existsSync(join(dir, packedName(weights))), false);
      const first = await load(dir, { weights });
      const written = statSync(join(dir, packedName(weights)));
      const second = await load(dir, { weights });
      assert.deepEqual(first.logits, plain.logits);
      assert.deepEqual(second.logits, plain.logits);
      assert.equal(first.mapped, 0);
      assert.ok(second.mapped > 0 && second.mapped <= second.model);
      assert.deepEqual([first.estimated, second.mapped > 0 && second.estimated > 0], [0, true]);
      assert.equal(statSync(join(dir, packedName(weights))).mtimeMs, written.mtimeMs, 'it was written again');
      for (const { offset, dtype } of (await readSafetensorsHeader(join(dir, packedName(weights)))).tensors.values()) {
        assert.equal(offset % 4096, 0);
        assert.equal(dtype, 'U8');
      }
    });
  }

  it('is written anew when the checkpoint changed, though size and time of modification stay', async (t) => {
    const dir = folder(t);
    const [path, checkpoint] = [join(dir, packedName('f32')), join(dir, 'model.safetensors')];
    const before = await load(dir);
    const key = await keyOf(path);
    const { atime, mtime } = statSync(checkpoint);
    const bytes = readFileSync(checkpoint);
    for (let at = Math.floor(bytes.length / 8) * 4; at < bytes.length; at += 4) {
      bytes.writeFloatLE(bytes.readFloatLE(at) * 1.25, at);
    }
    writeFileSync(checkpoint, bytes);
    utimesSync(checkpoint, atime, mtime);
    const again = await load(dir);
    assert.equal(again.mapped, 0);
    assert.notDeepEqual(again.logits, before.logits);
    assert.deepEqual(again.logits, (await load(dir, { packedCache: false })).logits);
    assert.notEqual(await keyOf(path), key);
    assert.ok((await load(dir)).mapped > 0);
  });

  it('that is truncated, foreign or of another version is written anew', async (t) => {
    const dir = folder(t);
    const path = join(dir, packedName('f32'));
    const { logits } = await load(dir);
    const key = (await keyOf(path)) ?? '';
    const spoil: Record<string, () => Promise<void> | void> = {
      truncated: () => truncateSync(path, statSync(path).size - 4096),
      'nothing but a few bytes': () => writeFileSync(path, 'packed'),
      'of another key': () => writeSafetensors(path, [], { format: 'at-moe-packed-1', key: 'another' }),
      'of another version': () => writeSafetensors(path, [], { format: 'at-moe-packed-0', key }),
    };
    for (const [how, act] of Object.entries(spoil)) {
      await act();
      const after = await load(dir);
      assert.deepEqual([after.mapped, after.warnings], [0, []], how);
      assert.deepEqual(after.logits, logits, how);
      assert.ok((await load(dir)).mapped > 0, how);
    }
  });

  it('that cannot be written is a warning', async (t) => {
    const dir = folder(t);
    const { logits, warnings } = await load(dir, { packedCache: join(dir, 'config.json', 'packed.safetensors') });
    assert.deepEqual(logits, (await load(dir, { packedCache: false })).logits);
    assert.match(warnings.join('\n'), /packed weights are not kept: .*config\.json/);
  });

  it('replaces no file of something else that is given', async (t) => {
    const dir = folder(t);
    const { logits } = await load(dir, { packedCache: false });
    for (const name of ['model.safetensors', 'config.json']) {
      const before = readFileSync(join(dir, name));
      const loaded = await load(dir, { packedCache: join(dir, name) });
      assert.match(loaded.warnings.join(), /packed weights are not kept: .* is another file/);
      assert.deepEqual(loaded.logits, logits);
      assert.deepEqual(readFileSync(join(dir, name)), before);
    }
    const empty = join(dir, 'empty');
    writeFileSync(empty, '');
    assert.deepEqual((await load(dir, { packedCache: empty })).warnings, []);
    assert.ok(statSync(empty).size > 0);
  });

  it('takes several writers at once', async (t) => {
    const dir = folder(t);
    const path = join(temporary(t), 'packed', 'weights');
    const all = await Promise.all(Array.from({ length: 4 }, () => load(dir, { packedCache: path, threads: 1 })));
    const after = await load(dir, { packedCache: path });
    for (const one of all) assert.deepEqual(one.logits, after.logits);
    assert.ok(after.mapped > 0);
    assert.deepEqual(readdirSync(join(path, '..')), ['weights']);
  });

  it('is not for weights to be trained', async (t) => {
    await assert.rejects(load(folder(t), { trainable: true }), TypeError);
  });
});

for (const device of devices.filter((name) => name !== 'cpu')) {
  test(`on ${device} packedCache is a warning, and no file`, async (t) => {
    const dir = folder(t);
    const { mapped, warnings } = await load(dir, { device: device as 'cuda', weights: 'f32' });
    assert.equal(mapped, 0);
    assert.match(warnings.join('\n'), /for the CPU/);
    assert.deepEqual(
      readdirSync(dir).filter((name) => name.startsWith('packed-')),
      [],
    );
  });
}
