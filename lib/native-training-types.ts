/** Training, as native code takes and returns it (lib/native-types.ts). */

export type TrainTarget = 'adapter' | 'router' | 'joint' | 'base';

export interface RouterCoefficients {
  groupBalance?: number;
  expertBalance?: number;
  zLoss?: number;
  entropy?: number;
  supervision?: number;
}

export interface TrainOptions {
  target: TrainTarget;
  coefficients?: RouterCoefficients;
  baseKl?: number;
  scaleMin?: number;
  dropout?: number;
  recompute?: boolean;
  seed?: number | bigint;
  beta1?: number;
  beta2?: number;
  epsilon?: number;
  weightDecay?: number;
  /** 0 = no clipping. */
  maxGradNorm?: number;
}

/** Rows of B sequences, one after the other. */
export interface MicroBatch {
  ids: Int32Array;
  /** [B + 1] first row of each sequence, then the number of rows. */
  offsets: Int32Array;
  /** [B] instruction tokens of each sequence. */
  promptLengths: Int32Array;
  /** [N] the id to be predicted at the row (the next token); -100 = none. */
  labels: Int32Array;
  lossWeights?: Float32Array;
  klMask?: Uint8Array;
  /** [B, G]; rows of zeros have no label. */
  groupTarget?: Float32Array;
  /** [B, E] */
  expertTarget?: Float32Array;
  /** [B] for draws that are per example. */
  exampleIds?: Float64Array;
  /** Tests, token scope: [layers, N, G + E] as in RoutingRequest. */
  selection?: Uint8Array;
  /** Of the whole optimiser step: Σ loss weights of labelled rows, rows of the KL mask, tokens. */
  stepLossWeight: number;
  stepKlRows?: number;
  stepTokens: number;
}

/** Shares of the means over the optimiser step: the values of its micro-batches add up. */
export interface MicroBatchResult {
  loss: number;
  kl: number;
  routerLosses: { groupBalance: number; expertBalance: number; zLoss: number; entropy: number; supervision: number };
  /** Σ coefficient · loss. */
  auxiliary: number;
  /** First sequence whose loss is not finite, -1 if none. */
  badSequence: number;
}

export interface NamedTensor {
  name: string;
  shape: number[];
  values: Float32Array;
}

export interface TrainerState {
  /** Updates done. */
  step: number;
  tensors: NamedTensor[];
}
