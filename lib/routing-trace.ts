import { z } from 'zod';
import { checkArgument } from './arguments.js';
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

export interface RenderOptions {
  /** Characters of a full bar; default 24. */
  width?: number;
  /** Tokens shown with token scope, from the first on; default 32, 0 = none. */
  tokens?: number;
}

const mostLayers = 40;
const levels = '▁▂▃▄▅▆▇█';

const meanOf = (values: readonly number[]) =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);

/** A character per layer, or per run of layers where there are many; heights from 0 to 1. */
function sparkline(values: readonly number[]): string {
  const count = Math.min(values.length, mostLayers);
  return Array.from({ length: count }, (_, i) => {
    const part = values.slice(Math.floor((i * values.length) / count), Math.floor(((i + 1) * values.length) / count));
    return levels[Math.min(levels.length - 1, Math.floor(meanOf(part) * levels.length))];
  }).join('');
}

function weightRows(trace: RoutingTrace, width: number): string[] {
  const { groups, experts, layers } = trace;
  const names = [...groups, ...experts.map((path) => `  ${path.slice(path.indexOf('/') + 1)}`)];
  const column = Math.max(...names.map((name) => name.length));
  const row = (name: string, values: number[], filled: string) => {
    const mean = meanOf(values);
    const bar = filled.repeat(Math.round(Math.min(mean, 1) * width)).padEnd(width);
    return `${name.padEnd(column)}  ${mean.toFixed(3)}  ${bar}  ${sparkline(values)}`.trimEnd();
  };
  const head = `${''.padEnd(column)}  mean   ${''.padEnd(width)}  layers 0 to ${layers.length - 1}`;
  return groups.reduce(
    (lines, group, g) => {
      lines.push(
        row(
          group,
          layers.map((layer) => layer.groupWeights[g] as number),
          '█',
        ),
      );
      for (const [e, path] of experts.entries()) {
        if (!path.startsWith(`${group}/`)) continue;
        lines.push(
          row(
            `  ${path.slice(group.length + 1)}`,
            layers.map((layer) => layer.expertWeights[e] as number),
            '▒',
          ),
        );
      }
      return lines;
    },
    [head],
  );
}

/** Per token the strongest expert of every group, by its mean weight over the layers. */
function tokenRows({ groups, experts, tokens = [] }: RoutingTrace, most: number): string[] {
  const shown = tokens.slice(0, most);
  const label = ({ id, text }: { id: number; text?: string }) =>
    text === undefined ? String(id) : JSON.stringify(text);
  const column = Math.max(...shown.map((token) => label(token).length));
  const cells = shown.map(({ layers }) => {
    const weights = experts.map((_, e) => meanOf(layers.map((layer) => layer.expertWeights[e] as number)));
    return groups.map((group) => {
      const own = experts.flatMap((path, e) =>
        path.startsWith(`${group}/`) ? [{ path, weight: weights[e] as number }] : [],
      );
      const best = own.reduce((a, b) => (b.weight > a.weight ? b : a));
      return `${best.path.slice(group.length + 1)} ${best.weight.toFixed(2)}`;
    });
  });
  const widths = groups.map((group, g) => Math.max(group.length, ...cells.map((row) => (row[g] as string).length)));
  const line = (first: string, row: readonly string[]) =>
    `${first.padEnd(column)}  ${row.map((cell, g) => cell.padEnd(widths[g] as number)).join('  ')}`.trimEnd();
  const rows = shown.map((token, i) => line(label(token), cells[i] as string[]));
  const rest = tokens.length > most ? [`… ${tokens.length - most} more tokens`] : [];
  return ['', line('token', groups), ...rows, ...rest];
}

const names = z.array(z.string());
const traceSchema = z.looseObject({ groups: names, experts: names, layers: z.array(z.object()) });
const renderSchema = z.strictObject({ width: z.int().min(1).default(24), tokens: z.int().min(0).default(32) });

/**
 * A compact text: per group and expert its mean weight over the layers, as a number and a bar, and its course over the
 * layers; with token scope per token the strongest expert of each group. @throws TypeError, RangeError.
 */
export function renderTrace(trace: RoutingTrace, options: RenderOptions = {}): string {
  checkArgument('renderTrace: trace', traceSchema, trace);
  const { width, tokens } = checkArgument('renderTrace', renderSchema, options);
  const lines = weightRows(trace, width);
  if (tokens > 0 && trace.tokens && trace.tokens.length > 0) lines.push(...tokenRows(trace, tokens));
  return `${lines.join('\n')}\n`;
}
