import type { RoutingNames } from './routing-controls.js';

/** How one layer weighed the experts: for the whole sequence, or as the mean over its tokens with token scope. */
export interface LayerRouting {
  /** [G] group softmax before selection. */
  groupProbabilities: number[];
  /** [E] softmax inside each group before selection. */
  expertProbabilities: number[];
  /** [G] α */
  groupWeights: number[];
  /** [E] w = α β */
  expertWeights: number[];
}

/** Why a text came out as it did: the weights of every layer. */
export interface RoutingTrace {
  scope: 'token' | 'sequence';
  groups: string[];
  /** "group/expert", in the order of all expert arrays. */
  experts: string[];
  layers: LayerRouting[];
  /** With token scope, every token that was routed, prompt first: its weights in each layer. */
  tokens?: { id: number; text?: string; layers: LayerRouting[] }[];
}

/** Records of some rows as the engine gives them: [layers, rows, width], width 2G+3E+1. */
export interface TraceRecords {
  layers: number;
  rows: number;
  width: number;
  records: Float32Array;
}

function layerRouting(names: RoutingNames, record: Float32Array): LayerRouting {
  const groups = names.groups.length;
  const experts = names.experts.length;
  const take = (start: number, count: number) => Array.from(record.subarray(start, start + count));
  return {
    groupProbabilities: take(0, groups),
    expertProbabilities: take(groups, experts),
    groupWeights: take(groups + experts, groups),
    expertWeights: take(2 * groups + experts, experts),
  };
}

function mean(parts: LayerRouting[]): LayerRouting {
  const average = (key: keyof LayerRouting) =>
    (parts[0]?.[key] ?? []).map(
      (_, i) => parts.reduce((sum, part) => sum + (part[key][i] as number), 0) / parts.length,
    );
  return {
    groupProbabilities: average('groupProbabilities'),
    expertProbabilities: average('expertProbabilities'),
    groupWeights: average('groupWeights'),
    expertWeights: average('expertWeights'),
  };
}

/** Puts the engine's records into words. `ids` are the tokens of the rows with token scope, in order. */
export function buildTrace(
  names: RoutingNames,
  parts: TraceRecords[],
  perToken: boolean,
  ids: ArrayLike<number>,
  text?: (id: number) => string,
): RoutingTrace {
  const rows: LayerRouting[][] = [];
  for (const { layers, rows: count, width, records } of parts) {
    for (let row = 0; row < count; row++) {
      rows.push(
        Array.from({ length: layers }, (_, layer) =>
          layerRouting(names, records.subarray((layer * count + row) * width, (layer * count + row + 1) * width)),
        ),
      );
    }
  }
  const layers = rows[0]?.map((_, layer) => mean(rows.map((row) => row[layer] as LayerRouting))) ?? [];
  const trace: RoutingTrace = {
    scope: perToken ? 'token' : 'sequence',
    groups: names.groups.map(({ name }) => name),
    experts: names.experts.map(({ path }) => path),
    layers,
  };
  if (perToken) {
    trace.tokens = rows.map((row, i) => {
      const id = ids[i] as number;
      return { id, ...(text && { text: text(id) }), layers: row };
    });
  }
  return trace;
}

/** A compact rendering: a row per expert, its mean weight over the layers as a bar, and the spread over the layers. */
export function renderTrace(trace: RoutingTrace, width = 24): string {
  const lines: string[] = [];
  const meanOver = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
  const cell = (value: number) => value.toFixed(3);
  for (const [g, group] of trace.groups.entries()) {
    const alphas = trace.layers.map((layer) => layer.groupWeights[g] as number);
    lines.push(`${group.padEnd(34)} ${cell(meanOver(alphas))}`);
    for (const [e, path] of trace.experts.entries()) {
      if (!path.startsWith(`${group}/`)) continue;
      const weights = trace.layers.map((layer) => layer.expertWeights[e] as number);
      const bar = '█'.repeat(Math.round(meanOver(weights) * width)).padEnd(width, '·');
      const range = `${cell(Math.min(...weights))}–${cell(Math.max(...weights))}`;
      lines.push(`  ${path.slice(group.length + 1).padEnd(32)} ${cell(meanOver(weights))} ${bar} ${range}`);
    }
  }
  return `${lines.join('\n')}\n`;
}
