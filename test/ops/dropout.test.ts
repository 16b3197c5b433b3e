import assert from 'node:assert/strict';
import { run } from '../helpers/ops.js';
import { philox, uniform } from './reference/philox.js';
import { close, matrix, onDevices, Random, row, sameBits } from './support.js';

const kept = (seed: number, stream: number, element: number, p: number) =>
  uniform(philox(BigInt(seed), BigInt(stream), BigInt(element >> 2))[element & 3]!) >= p;

onDevices('philox: known answers of the paper through the reference', () => {
  assert.deepEqual(philox(0n, 0n, 0n), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const ones = (1n << 64n) - 1n;
  assert.deepEqual(philox(ones, ones, ones), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
});

onDevices('dropout: the mask is a function of seed, stream and element', (device, tolerance) => {
  const random = new Random(1);
  for (const [rows, cols, firstRow, pad] of [
    [1, 1, 0, 3],
    [5, 7, 0, 3],
    [9, 130, 3, 3],
    [3, 2068, 5, 4],
    [2, 2068, 1, 1],
    [0, 4, 0, 3],
  ] as const) {
    const x = random.matrix(rows, cols);
    const expected = x.data.map((value, i) => (kept(42, 7, firstRow * cols + i, 0.3) ? value / 0.7 : 0));
    const args = { x, p: 0.3, seed: 42, stream: 7, firstRow, pad };
    close(run('dropout', device, args).y, expected, tolerance, 'y');
    const y = random.matrix(rows, cols);
    const added = expected.map((v, i) => v + y.data[i]!);
    close(run('dropout', device, { ...args, y }, 2).y, added, tolerance, 'added');
    close(run('dropout', device, { ...args, y, floats: true }).y, added, tolerance, 'added from f32');
  }
});

onDevices('dropout: cutting rows changes nothing, p = 0 keeps all, about p are dropped', (device) => {
  const x = matrix(64, 101, new Float32Array(64 * 101).fill(1));
  const args = { p: 0.25, seed: 3, stream: 2 ** 40 };
  const whole = run('dropout', device, { ...args, x }).y as Float32Array;
  const part = run('dropout', device, { ...args, x: matrix(1, 101, row(x, 9)), firstRow: 9 }).y;
  sameBits(part, whole.slice(9 * 101, 10 * 101), 'row 9');
  const dropped = whole.reduce((count, v) => count + (v === 0 ? 1 : 0), 0) / whole.length;
  assert.ok(Math.abs(dropped - 0.25) < 0.03, `${dropped} dropped`);
  sameBits(run('dropout', device, { ...args, x, p: 0 }).y, x.data, 'p = 0');
});
