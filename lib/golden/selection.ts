import { mixtureDescriptor } from '../mixture-data.js';
import type { ExpectedTensor, GoldenCase } from './case.js';

/**
 * What the expected weights of a case say was kept: per sequence [layers, tokens, G + E], 1 for a group whose α and an
 * expert whose w are not 0. Undefined where nothing is selected. An expert of a group that was not kept counts as not kept,
 * which changes nothing. Selection goes by token scope only.
 */
export function selectionOf(golden: GoldenCase): Uint8Array[] | undefined {
  const { routing } = golden.mixture;
  const selects = [routing.group_top_k, routing.expert_top_k, routing.group_top_p, routing.expert_top_p].some(Boolean);
  if (!selects || routing.scope !== 'token') return undefined;
  const { groups, experts } = mixtureDescriptor(golden.mixture);
  const layers = golden.base.descriptor.config.numLayers;
  const tensor = (layer: number, what: string) =>
    golden.expected.get(`mixture.layers.${layer}.${what}`) as ExpectedTensor;
  return golden.sequences.map((ids, b) => {
    const rows: number[] = [];
    for (let layer = 0; layer < layers; layer++) {
      for (let t = 0; t < ids.length; t++) {
        for (const [what, width] of [
          ['group_weights', groups.length],
          ['expert_weights', experts.length],
        ] as const) {
          const at = (b * golden.paddedLength + t) * width;
          for (const weight of tensor(layer, what).values.subarray(at, at + width)) rows.push(weight > 0 ? 1 : 0);
        }
      }
    }
    return Uint8Array.from(rows);
  });
}
