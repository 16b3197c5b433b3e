/** Weights and activations of 8 bits in plain double arithmetic, block by block: core/q8.h says what they are. */
import type { Matrix } from '../../helpers/ops.js';

export const block = 32;

/** Values of all finite f16 that are not negative, ascending. */
export const halves = Float64Array.from({ length: 0x7c00 }, (_, code) => {
  const exponent = code >> 10;
  const fraction = code & 1023;
  return exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
});

/** The code of the smallest f16 that is at least `value`. */
function halfAtLeast(value: number): number {
  let [low, high] = [0, halves.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (halves[middle]! >= value) high = middle;
    else low = middle + 1;
  }
  return low;
}

const roundToEven = (x: number) => {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
};

export interface Quantized {
  /** Row-major [rows, cols]. */
  values: Int8Array;
  /** f16 codes [rows, blocks]. */
  scales: Uint16Array;
  /** s q, exact in f32. */
  weights: Matrix;
}

export function quantized({ rows, cols, data }: Matrix): Quantized {
  const blocks = Math.ceil(cols / block);
  const values = new Int8Array(rows * cols);
  const scales = new Uint16Array(rows * blocks);
  const weights = new Float32Array(rows * cols);
  for (let row = 0; row < rows; row++) {
    for (let b = 0; b < blocks; b++) {
      const first = row * cols + b * block;
      const own = data.subarray(first, Math.min(first + block, (row + 1) * cols));
      const largest = own.reduce((most, w) => Math.max(most, Math.abs(w)), 0);
      if (largest <= 2 ** -25) continue;
      const code = halfAtLeast(Math.fround(largest / 127));
      const scale = halves[code]!;
      scales[row * blocks + b] = code;
      own.forEach((w, i) => {
        values[first + i] = Math.max(-127, Math.min(127, roundToEven(Math.fround(w / scale))));
        weights[first + i] = scale * values[first + i]!;
      });
    }
  }
  return { values, scales, weights: { rows, cols, data: weights } };
}

/** The values that a quantised row of activations stands for (backend/ops/linear.h); all are finite. */
export function quantizedRows({ rows, cols, data }: Matrix): Matrix {
  const values = new Float32Array(rows * cols);
  for (let row = 0; row < rows; row++) {
    for (let first = row * cols; first < (row + 1) * cols; first += block) {
      const own = data.subarray(first, Math.min(first + block, (row + 1) * cols));
      const largest = own.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      if (largest < 2 ** -119) continue;
      const steps = Math.fround(127 / largest);
      const scale = Math.fround(largest / 127);
      own.forEach((x, i) => {
        values[first + i] = roundToEven(Math.fround(x * steps)) * scale;
      });
    }
  }
  return { rows, cols, data: values };
}
