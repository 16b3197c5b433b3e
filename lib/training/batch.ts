import type { GroupNames } from '../data/labels.js';
import type { MicroBatch as PackedBatch } from '../data/micro-batch.js';
import type { MicroBatch } from '../native-training-types.js';

/** Sums over all micro-batches that share one mean: those of an optimiser step, or of an evaluation. */
export interface BatchTotals {
  /** Σ loss weights. */
  lossWeight: number;
  /** Rows with a label. */
  labelled: number;
  /** Rows of the base KL term. */
  klRows: number;
  tokens: number;
}

/** What the engine needs beside the rows. */
export interface BatchPlan {
  /** Send the KL mask. */
  baseKl: boolean;
  /** Send targets for these groups; undefined = none. */
  groups?: readonly GroupNames[];
}

export function batchTotals(batches: Iterable<PackedBatch>): BatchTotals {
  const totals = { lossWeight: 0, labelled: 0, klRows: 0, tokens: 0 };
  for (const { ids, lossWeights, klMask } of batches) {
    totals.tokens += ids.length;
    for (const weight of lossWeights) {
      totals.lossWeight += weight;
      if (weight > 0) totals.labelled++;
    }
    for (const mask of klMask) totals.klRows += mask;
  }
  return totals;
}

/** The engine's form of a micro-batch that is a part of `totals`. */
export function engineBatch(batch: PackedBatch, totals: BatchTotals, plan: BatchPlan): MicroBatch {
  const { ids, offsets, promptLengths, labels, lossWeights, klMask } = batch;
  return {
    ids,
    offsets,
    promptLengths,
    labels,
    lossWeights,
    stepLossWeight: totals.lossWeight,
    stepTokens: totals.tokens,
    ...(plan.baseKl && { klMask, stepKlRows: totals.klRows }),
    ...(plan.groups && supervisionTargets(batch, plan.groups)),
  };
}

/**
 * Shares of the supervision loss: the labelled groups of a sequence share t_g equally (group target [B, G]), the
 * labelled experts of a group share t_{e|g} equally (expert target [B, E]); zeros where there is no label.
 */
export function supervisionTargets(
  { groupLabels, expertLabels }: Pick<PackedBatch, 'groupLabels' | 'expertLabels'>,
  groups: readonly GroupNames[],
): { groupTarget: Float32Array; expertTarget: Float32Array } {
  const groupOf = groups.flatMap(({ experts }, group) => experts.map(() => group));
  const groupTarget = new Float32Array(groupLabels.length * groups.length);
  const expertTarget = new Float32Array(groupLabels.length * groupOf.length);
  for (const [b, labelled] of groupLabels.entries()) {
    for (const group of labelled) groupTarget[b * groups.length + group] = 1 / labelled.length;
  }
  for (const [b, labelled] of expertLabels.entries()) {
    for (const expert of labelled) {
      const sharing = labelled.filter((other) => groupOf[other] === groupOf[expert]).length;
      expertTarget[b * groupOf.length + expert] = 1 / sharing;
    }
  }
  return { groupTarget, expertTarget };
}
