import assert from 'node:assert/strict';
import { test } from 'node:test';
import { activationTolerance, opDevices } from '../helpers/devices.js';
import type { Matrix } from '../helpers/ops.js';

/** A test for each device. Loops and cases belong inside `body`. */
export function onDevices(name: string, body: (device: string, tolerance: number) => void): void {
  for (const device of opDevices) test(`${name} [${device}]`, () => body(device, activationTolerance(device)));
}

/** Small deterministic generator (mulberry32) of normal deviates, exact in bf16 so that inputs round nowhere. */
export class Random {
  private state: number;
  constructor(seed: number) {
    this.state = seed * 2654435761;
  }
  uniform(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  integer(below: number): number {
    return Math.floor(this.uniform() * below);
  }
  normal(scale = 1): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return toBf16(scale * radius * Math.cos(2 * Math.PI * this.uniform()));
  }
  array(length: number, scale = 1): Float32Array {
    return Float32Array.from({ length }, () => this.normal(scale));
  }
  matrix(rows: number, cols: number, scale = 1): Matrix {
    return { rows, cols, data: this.array(rows * cols, scale) };
  }
}

const scratch = new Uint32Array(1);
const scratchFloat = new Float32Array(scratch.buffer);

export function toBf16(value: number): number {
  scratchFloat[0] = value;
  scratch[0] = (scratch[0]! + 0x8000) & 0xffff0000;
  return scratchFloat[0]!;
}

export const matrix = (rows: number, cols: number, data: ArrayLike<number>): Matrix => ({
  rows,
  cols,
  data: Float32Array.from(data),
});

export const doubles = (values: ArrayLike<number>): Float64Array => Float64Array.from(values);

export const row = (m: { cols: number; data: ArrayLike<number> }, index: number): number[] =>
  Array.from({ length: m.cols }, (_, j) => m.data[index * m.cols + j]!);

/** Every entry within `tolerance` of the expected array's largest magnitude (at least `floor`). NaN never passes. */
export function close(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
  floor = 1e-3,
): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  let largest = floor;
  for (let i = 0; i < expected.length; ++i) largest = Math.max(largest, Math.abs(expected[i]!));
  for (let i = 0; i < expected.length; ++i) {
    const error = Math.abs(actual[i]! - expected[i]!);
    if (!(error <= tolerance * largest)) {
      assert.fail(
        `${what}[${i}] is ${actual[i]}, expected ${expected[i]} (largest ${largest}, tolerance ${tolerance})`,
      );
    }
  }
}

export function sameBits(actual: Float32Array, expected: Float32Array, what: string): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  const a = new Uint32Array(actual.buffer, actual.byteOffset, actual.length);
  const b = new Uint32Array(expected.buffer, expected.byteOffset, expected.length);
  for (let i = 0; i < a.length; ++i) {
    if (a[i] !== b[i]) assert.fail(`${what}[${i}]: ${actual[i]} and ${expected[i]} differ in bits`);
  }
}

/** d loss / d values by central differences in double. */
export function numericGradient(
  values: Float64Array,
  loss: (values: Float64Array) => number,
  step = 1e-5,
): Float64Array {
  return values.map((value, i) => {
    const at = (x: number) => {
      const moved = values.slice();
      moved[i] = x;
      return loss(moved);
    };
    return (at(value + step) - at(value - step)) / (2 * step);
  });
}

export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i]! * b[i]!;
  return sum;
}
