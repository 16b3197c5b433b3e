import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fromFloat32 } from '../../lib/formats/float-types.js';
import {
  checkFinite,
  readSafetensorsHeader,
  readTensor,
  readWeights,
  writeSafetensors,
} from '../../lib/formats/safetensors.js';
import { golden, rawSafetensors, rejectsWith, sharedData, temporaryFolder, tensor } from './support.js';

const f32 = (shape: unknown, offsets: unknown) => JSON.stringify({ dtype: 'F32', shape, data_offsets: offsets });

const hostile: [name: string, header: string, dataBytes: number, pattern: RegExp][] = [
  ['data cut off', `{"t":${f32([4], [0, 16])}}`, 12, /truncated/],
  ['bytes after the data', `{"t":${f32([4], [0, 16])}}`, 17, /bytes after the last tensor/],
  ['overlap', `{"a":${f32([2], [0, 8])},"b":${f32([2], [4, 12])}}`, 12, /"b".*overlaps/],
  ['same bytes twice', `{"a":${f32([2], [0, 8])},"b":${f32([2], [0, 8])}}`, 8, /overlaps/],
  ['hole', `{"a":${f32([2], [0, 8])},"b":${f32([2], [12, 20])}}`, 20, /"b".*hole/],
  ['hole at the start', `{"a":${f32([2], [4, 12])}}`, 12, /"a".*hole/],
  ['shape too large', `{"t":${f32([5], [0, 16])}}`, 16, /"t".*does not fit/],
  ['product beyond 2^53', `{"t":${f32([4294967296, 4294967296, 4294967296], [0, 16])}}`, 16, /"t".*does not fit/],
  [
    'product that wraps to 4 in 64 bits',
    '{"t":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}',
    16,
    /bad shape/,
  ],
  ['negative size', `{"t":${f32([-4], [0, 16])}}`, 16, /bad shape/],
  ['negative sizes of positive product', `{"t":${f32([-2, -2], [0, 16])}}`, 16, /bad shape/],
  ['fractional size', `{"t":${f32([1.5], [0, 6])}}`, 6, /bad shape/],
  ['shape as text', `{"t":${f32('4', [0, 16])}}`, 16, /bad shape/],
  ['offsets backwards', `{"t":${f32([0], [16, 0])}}`, 16, /run backwards/],
  ['three offsets', `{"t":${f32([4], [0, 16, 16])}}`, 16, /bad data_offsets/],
  ['negative offset', `{"t":${f32([4], [-16, 0])}}`, 16, /bad data_offsets/],
  ['unknown dtype', '{"t":{"dtype":"Q4","shape":[4],"data_offsets":[0,16]}}', 16, /unknown dtype "Q4"/],
  ['inherited name as dtype', '{"t":{"dtype":"constructor","shape":[4],"data_offsets":[0,16]}}', 16, /unknown dtype/],
  ['no dtype', '{"t":{"shape":[4],"data_offsets":[0,16]}}', 16, /unknown dtype/],
  ['unknown key', '{"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1}}', 16, /unknown key "x"/],
  ['entry not an object', '{"t":[1]}', 0, /not an object/],
  ['metadata not strings', '{"__metadata__":{"a":1}}', 0, /__metadata__/],
  ['header an array', '[]', 0, /not a JSON object/],
  ['header not JSON', '{"t":', 0, /not valid JSON/],
  ['key twice', `{"t":${f32([4], [0, 16])},"t":${f32([4], [0, 16])}}`, 16, /"t" occurs twice/],
  ['key twice, once escaped', `{"t":${f32([4], [0, 16])},"\\u0074":${f32([4], [0, 16])}}`, 16, /"t" occurs twice/],
];

for (const [name, header, dataBytes, pattern] of hostile) {
  test(`safetensors refuses: ${name}`, async (t) => {
    const path = join(temporaryFolder(t), 'bad.safetensors');
    rawSafetensors(path, header, dataBytes);
    await rejectsWith(readSafetensorsHeader(path), 'ERR_AT_MOE_BAD_FILE', /bad\.safetensors/, pattern);
  });
}

test('safetensors refuses headers of impossible length, other bytes, and what is no file', async (t) => {
  const dir = temporaryFolder(t);
  const path = join(dir, 'bad.safetensors');
  for (const [declared, pattern] of [
    [2n ** 64n - 1n, /at most 100000000/],
    [100_000_001n, /at most 100000000/],
    [100_000_000n, /truncated/],
  ] as const) {
    rawSafetensors(path, '{}', 0, declared);
    await rejectsWith(readSafetensorsHeader(path), 'ERR_AT_MOE_BAD_FILE', pattern);
  }
  for (const bytes of [Buffer.alloc(0), Buffer.alloc(7)]) {
    writeFileSync(path, bytes);
    await rejectsWith(readSafetensorsHeader(path), 'ERR_AT_MOE_BAD_FILE', /truncated/);
  }
  writeFileSync(path, Buffer.from([2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]));
  await rejectsWith(readSafetensorsHeader(path), 'ERR_AT_MOE_BAD_FILE', /not valid JSON/);
  await rejectsWith(readSafetensorsHeader(dir), 'ERR_AT_MOE_BAD_FILE', /not a regular file/);
  await rejectsWith(readSafetensorsHeader(join(dir, 'none')), 'ERR_AT_MOE_NOT_FOUND');
  if (process.platform !== 'win32') {
    execFileSync('mkfifo', [join(dir, 'pipe')]);
    await rejectsWith(readSafetensorsHeader(join(dir, 'pipe')), 'ERR_AT_MOE_BAD_FILE', /not a regular file/);
  }
});

test('every truncation and every flipped header byte is refused or still describes the same bytes', async (t) => {
  const path = join(temporaryFolder(t), 'x.safetensors');
  await writeSafetensors(path, [tensor('a', [2, 3], 1), tensor('b', [4], 2)]);
  const whole = readFileSync(path);
  for (let length = 0; length < whole.length; length++) {
    writeFileSync(path, whole.subarray(0, length));
    await rejectsWith(readSafetensorsHeader(path), 'ERR_AT_MOE_BAD_FILE');
  }
  for (let i = 0; i < whole.length - 40; i++) {
    const flipped = Buffer.from(whole);
    flipped[i] = (flipped[i] as number) ^ (1 << (i % 8));
    writeFileSync(path, flipped);
    const outcome = await readSafetensorsHeader(path).catch((error) => error.code);
    if (typeof outcome === 'string') assert.equal(outcome, 'ERR_AT_MOE_BAD_FILE');
    else assert.ok([...outcome.tensors.values()].every((e) => e.offset + e.byteLength <= whole.length));
  }
});

test('round trip: values, shapes, empty and scalar tensors, names, metadata, sources in files', async (t) => {
  const dir = temporaryFolder(t);
  const first = join(dir, 'first.safetensors');
  const tensors = [
    tensor('b', [2, 3], (i) => i / 4),
    tensor('ä "quoted"', [1], 7),
    tensor('empty', [0, 5], 0),
    tensor('scalar', [], 3),
    { name: 'half', dtype: 'f16' as const, shape: [3], data: fromFloat32('f16', Float32Array.of(1, 2, 3)) },
    { name: '__proto__', dtype: 'U8' as const, shape: [2], data: Uint8Array.of(8, 9) },
    { name: 'ids', dtype: 'I64' as const, shape: [1], data: new Uint8Array(BigInt64Array.of(-5n).buffer) },
  ];
  await writeSafetensors(first, tensors, { format: 'pt', note: 'x' });
  const file = await readSafetensorsHeader(first);
  assert.deepEqual(file.metadata, { format: 'pt', note: 'x' });
  assert.deepEqual([...file.tensors.keys()], ['ids', 'b', 'empty', 'scalar', 'ä "quoted"', 'half', '__proto__']);
  assert.deepEqual(await readTensor(file, 'b'), Float32Array.of(0, 0.25, 0.5, 0.75, 1, 1.25));
  assert.deepEqual(await readTensor(file, 'ids'), BigInt64Array.of(-5n));
  assert.deepEqual(await readTensor(file, 'half'), Uint16Array.of(0x3c00, 0x4000, 0x4200));
  assert.deepEqual(await readTensor(file, '__proto__'), Uint8Array.of(8, 9));
  assert.equal((await readTensor(file, 'empty')).length, 0);
  await rejectsWith(readTensor(file, 'none'), 'ERR_AT_MOE_UNKNOWN_NAME', /none/);
  await rejectsWith(readWeights(file), 'ERR_AT_MOE_BAD_FILE', /I64 cannot hold weights/);
  assert.equal(([...file.tensors.values()][0]?.offset ?? 1) % 8, 0);

  const second = join(dir, 'second.safetensors');
  const inFile = [...file.tensors.values()].map(({ name, dtype, shape, offset }) => ({
    name,
    dtype,
    shape,
    offset,
    file: first,
  }));
  await writeSafetensors(second, inFile.reverse(), file.metadata);
  assert.deepEqual(readFileSync(second), readFileSync(first));
});

test('a file cut after its header was read is an error, not zeros', async (t) => {
  const path = join(temporaryFolder(t), 'x.safetensors');
  await writeSafetensors(path, [tensor('a', [64], 1)]);
  const file = await readSafetensorsHeader(path);
  truncateSync(path, file.tensors.get('a')?.offset ?? 0);
  await rejectsWith(readTensor(file, 'a'), 'ERR_AT_MOE_BAD_FILE', /truncated/);
});

test('non-finite values are named', () => {
  assert.throws(
    () =>
      checkFinite(
        'f.safetensors',
        tensor('w', [3], (i) => (i === 2 ? Number.NaN : 0)),
      ),
    {
      code: 'ERR_AT_MOE_NOT_FINITE',
      message: /f\.safetensors: tensor "w": element 2/,
    },
  );
});

test('golden expected values are read: I64 ids, U8 masks, F32 logits', async () => {
  const file = await readSafetensorsHeader(join(golden, 'llama-token-dense', 'expected.safetensors'));
  const [ids, mask] = [await readTensor(file, 'input_ids'), await readTensor(file, 'prompt_mask')];
  assert.ok(ids instanceof BigInt64Array && mask instanceof Uint8Array);
  assert.equal(ids.length, mask.length);
  assert.ok((await readTensor(file, 'base.logits')) instanceof Float32Array);
});

test('a file of the safetensors library is written again byte for byte', async (t) => {
  const shared = sharedData(t);
  if (!shared) return;
  const path = join(temporaryFolder(t), 'again.safetensors');
  for (const name of ['adapters/peft-lora-all-r8/adapter_model', 'models/tiny-random-llama3-rope-bf16/model']) {
    const original = join(shared, `${name}.safetensors`);
    const file = await readSafetensorsHeader(original);
    await writeSafetensors(path, await readWeights(file), file.metadata);
    assert.deepEqual(readFileSync(path), readFileSync(original), name);
  }
});
