/** Calls of the router's ops, and their records in the reference's form. */
import { run } from '../helpers/ops.js';
import { type Controls, type Options, type Parameters, type Routed, range, type Shape } from './reference/router.js';
import { close, matrix, row } from './support.js';

/** Of a routing record. */
export const width = (groups: number, experts: number) => 2 * groups + 3 * experts + 1;
const typed = (controls: Controls) =>
  Object.fromEntries(
    Object.entries(controls).map(([name, values]) => [
      name,
      name.endsWith('Denied') ? Uint8Array.from(values) : Float32Array.from(values),
    ]),
  );

export function parse(record: number[], shape: Shape): Routed {
  const groups = shape.groupStart.length - 1;
  const experts = shape.groupStart[groups]!;
  let at = 0;
  const take = (count: number) => {
    at += count;
    return record.slice(at - count, at);
  };
  const [alpha0, beta0, alpha, weight, gate] = [groups, experts, groups, experts, experts + 1].map(take);
  return { alpha0, beta0, alpha, weight, gate, kept: [], c: [] } as unknown as Routed;
}

/** Routes every row on the device; one segment, token scope. */
export function routeRows(
  device: string,
  shape: Shape,
  logits: Float32Array,
  options: Options = {},
  controls: Controls = {},
  parameters: Parameters = {},
): Routed[] {
  const groups = shape.groupStart.length - 1;
  const experts = shape.groupStart[groups]!;
  const rows = logits.length / (groups + experts);
  const out = run('routerForward', device, {
    logits: matrix(rows, groups + experts, logits),
    records: rows,
    pad: 5,
    segments: [
      {
        ...options,
        ...typed(controls),
        begin: 0,
        end: rows,
        out: 0,
        groupStart: Int32Array.from(shape.groupStart),
        ...(parameters.score ? { score: Float32Array.from(parameters.score) } : {}),
        balanceConstant: parameters.lambda ?? 1,
        scaleConstant: parameters.rho ?? 1,
      },
    ],
  });
  const records = { cols: width(groups, experts), data: out.routing as Float32Array };
  return range(0, rows).map((n) => parse(row(records, n), shape));
}

export function compare(actual: Routed, expected: Routed, what: string): void {
  for (const name of ['alpha0', 'beta0', 'alpha', 'weight', 'gate'] as const) {
    close(actual[name], expected[name], 2e-6, `${what} ${name}`, 1);
  }
}
