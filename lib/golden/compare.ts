import type { WeightFormat } from '../descriptors.js';
import type { ExpectedTensor } from './case.js';

/** Errors relative to the tensor's largest value, but where `cosine` says otherwise. */
export interface Tolerances {
  logits: number;
  losses: number;
  weights: number;
  gradients: number;
  /** Of the norms of all gradients together, before clipping, one per step. */
  norms: number;
  /** The error of a gradient is 1 - the cosine of the angle to the expected one. */
  cosine: boolean;
  /** Of a parameter after AdamW; `outliers` is the share of entries that may be beyond it. */
  parameters: number;
  outliers: number;
  /** Whether rounding may change what is selected, and the text: the expected selection is prescribed, greedy text left out. */
  rounds: boolean;
}

/** Of a float32 engine: section 7 of the mixture's definition. */
const float32: Tolerances = {
  logits: 1e-4,
  losses: 1e-4,
  weights: 1e-4,
  gradients: 1e-3,
  norms: 1e-3,
  cosine: false,
  parameters: 1e-3,
  outliers: 1e-3,
  rounds: false,
};

/** Where activations are bf16 or f16. After AdamW the sign of a small gradient decides: any entry may differ by 2 lr a step. */
const half: Tolerances = {
  logits: 5e-2,
  losses: 5e-2,
  weights: 5e-2,
  gradients: 1e-2,
  norms: 5e-2,
  cosine: true,
  parameters: 1e-1,
  outliers: 1,
  rounds: true,
};

/** By the type of the activations: the CPU computes in f32 whatever the weights are. */
export function tolerancesOf(device: string, weights: WeightFormat): Tolerances {
  return device === 'cpu' || weights === 'f32' ? float32 : half;
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

/** 1 - the cosine of the angle between both, 0 when both are zero; NaN counts as infinite. */
export function cosineError(expected: ExpectedTensor, actual: ArrayLike<number>): number {
  checkCount(expected, actual);
  let [dot, a, b] = [0, 0, 0];
  for (const [i, value] of expected.values.entries()) {
    const other = actual[i] as number;
    dot += value * other;
    a += value * value;
    b += other * other;
  }
  if (a === 0 && b === 0) return 0;
  const error = 1 - dot / Math.sqrt(a * b);
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
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
