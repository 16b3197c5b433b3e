/** Naive forms in double of the ops in backend/ops/elementwise.h. Matrices are flat, row-major. */

export function rmsNorm(x: ArrayLike<number>, gamma: ArrayLike<number>, eps: number): Float64Array {
  const dim = gamma.length;
  const y = new Float64Array(x.length);
  for (let first = 0; first < x.length; first += dim) {
    let squares = 0;
    for (let i = 0; i < dim; ++i) squares += x[first + i]! ** 2;
    const r = 1 / Math.sqrt(squares / dim + eps);
    for (let i = 0; i < dim; ++i) y[first + i] = x[first + i]! * r * gamma[i]!;
  }
  return y;
}

export function swiglu(gate: ArrayLike<number>, up: ArrayLike<number>): Float64Array {
  return Float64Array.from({ length: gate.length }, (_, i) => (gate[i]! / (1 + Math.exp(-gate[i]!))) * up[i]!);
}

/** Half-split rotation of rows of heads. */
export function rope(
  x: ArrayLike<number>,
  cols: number,
  positions: ArrayLike<number>,
  invFreq: ArrayLike<number>,
): Float64Array {
  const half = invFreq.length;
  const y = Float64Array.from(x);
  for (let n = 0; n < positions.length; ++n) {
    for (let head = 0; head < cols; head += 2 * half) {
      for (let i = 0; i < half; ++i) {
        const low = n * cols + head + i;
        const angle = positions[n]! * invFreq[i]!;
        y[low] = x[low]! * Math.cos(angle) - x[low + half]! * Math.sin(angle);
        y[low + half] = x[low + half]! * Math.cos(angle) + x[low]! * Math.sin(angle);
      }
    }
  }
  return y;
}
