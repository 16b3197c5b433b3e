import type { ExpectedTensor } from './case.js';

/** Errors relative to the tensor's largest value. */
export interface Tolerances {
  logits: number;
  losses: number;
  weights: number;
  gradients: number;
  /** Of a parameter after AdamW; `outliers` is the share of entries that may be beyond it. */
  parameters: number;
  outliers: number;
}

/** Of a float32 engine: section 7 of the mixture's definition. */
const float32: Tolerances = {
  logits: 1e-4,
  losses: 1e-4,
  weights: 1e-4,
  gradients: 1e-3,
  parameters: 1e-3,
  outliers: 1e-3,
};

/** Where activations are bf16, of 8 significant bits. */
const bfloat16: Tolerances = {
  logits: 3e-2,
  losses: 1e-2,
  weights: 2e-2,
  gradients: 1e-1,
  parameters: 1e-1,
  outliers: 1e-1,
};

export function tolerancesOf(device: string): Tolerances {
  return device === 'cpu' ? float32 : bfloat16;
}

function largest(values: Float64Array): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

/** What an error is divided by: the tensor's largest value, or 1 for a tensor of zeros. */
function scaleOf({ values }: ExpectedTensor): number {
  return largest(values) || 1;
}

function checkCount(expected: ExpectedTensor, actual: ArrayLike<number>): void {
  if (actual.length === expected.values.length) return;
  throw new Error(`${expected.name}: ${actual.length} values instead of ${expected.values.length}`);
}

/** The largest difference, relative to the largest expected value; NaN counts as infinite. */
export function relativeError(expected: ExpectedTensor, actual: ArrayLike<number>): number {
  checkCount(expected, actual);
  const scale = scaleOf(expected);
  let error = 0;
  for (const [i, value] of expected.values.entries()) {
    const difference = Math.abs((actual[i] as number) - value) / scale;
    error = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : Math.max(error, difference);
  }
  return error;
}

/** How trained parameters differ, over all tensors of an optimiser's run together. */
export class ParameterErrors {
  readonly #tolerance: number;
  #entries = 0;
  #outliers = 0;
  /** Largest absolute difference. */
  largest = 0;

  /** `tolerance`: of an entry, relative to its tensor's largest value. */
  constructor(tolerance: number) {
    this.#tolerance = tolerance;
  }

  add(expected: ExpectedTensor, actual: ArrayLike<number>): void {
    checkCount(expected, actual);
    const limit = this.#tolerance * scaleOf(expected);
    for (const [i, value] of expected.values.entries()) {
      const difference = Math.abs((actual[i] as number) - value);
      this.#entries++;
      if (!(difference <= limit)) this.#outliers++;
      this.largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : Math.max(this.largest, difference);
    }
  }

  /** Share of the entries beyond the tolerance. */
  get outliers(): number {
    return this.#outliers / Math.max(this.#entries, 1);
  }
}
