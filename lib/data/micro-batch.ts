import type { TokenizedExample } from './examples.js';

/** Label of a position without a prediction to learn. */
export const noLabel = -100;

/** B sequences of together N tokens, one after the other; nothing is padded. */
export interface MicroBatch {
  /** [N] */
  ids: Int32Array;
  /** [B+1] first token of each sequence, then N. */
  offsets: Int32Array;
  /** [B] prompt tokens of each sequence. */
  promptLengths: Int32Array;
  /**
   * [N] already shifted: the id to predict at t, which is the next id of the sequence; -100 where nothing is learnt.
   */
  labels: Int32Array;
  /** [N] weight of the loss at t; 0 exactly where labels is -100. */
  lossWeights: Float32Array;
  /** [N] 1 where the next token is a completion token of weight 0: the positions of the base KL term. */
  klMask: Uint8Array;
  /** Per sequence the indices of its labelled groups; empty for none. */
  groupLabels: Int32Array[];
  /** Per sequence the indices of its labelled experts over all groups; empty for none. */
  expertLabels: Int32Array[];
  /** Per sequence where it comes from. */
  sources: string[];
}

/** Lays examples out as one ragged batch. */
export function buildMicroBatch(examples: readonly TokenizedExample[]): MicroBatch {
  const total = examples.reduce((sum, { ids }) => sum + ids.length, 0);
  const batch: MicroBatch = {
    ids: new Int32Array(total),
    offsets: new Int32Array(examples.length + 1),
    promptLengths: Int32Array.from(examples, ({ promptLength }) => promptLength),
    labels: new Int32Array(total).fill(noLabel),
    lossWeights: new Float32Array(total),
    klMask: new Uint8Array(total),
    groupLabels: examples.map(({ groups }) => groups ?? new Int32Array(0)),
    expertLabels: examples.map(({ experts }) => experts ?? new Int32Array(0)),
    sources: examples.map(({ source }) => source),
  };
  let start = 0;
  for (const [b, { ids, tokenWeights, zeroWeight }] of examples.entries()) {
    batch.ids.set(ids, start);
    batch.klMask.set(zeroWeight.subarray(1), start);
    for (let t = 1; t < ids.length; t++) {
      const weight = tokenWeights[t] as number;
      if (weight === 0) continue;
      batch.labels[start + t - 1] = ids[t] as number;
      batch.lossWeights[start + t - 1] = weight;
    }
    start += ids.length;
    batch.offsets[b + 1] = start;
  }
  return batch;
}
