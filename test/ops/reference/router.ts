/** The two-stage router in double, from the definitions: one row at a time, selection frozen on request. */

export interface Shape {
  groupStart: number[];
}

export interface Options {
  conditional?: boolean;
  groupTopK?: number;
  expertTopK?: number;
  groupTopP?: number;
  expertTopP?: number;
  groupTemperature?: number;
  expertTemperature?: number;
  renormalize?: boolean;
}

/** Arrays over groups or experts; NaN in a `Set` array means not set. */
export interface Controls {
  groupBias?: ArrayLike<number>;
  expertBias?: ArrayLike<number>;
  groupDenied?: ArrayLike<number>;
  expertDenied?: ArrayLike<number>;
  groupSet?: ArrayLike<number>;
  expertSet?: ArrayLike<number>;
}

export interface Parameters {
  score?: ArrayLike<number>;
  lambda?: number;
  rho?: number;
}

export interface Routed {
  alpha0: number[];
  beta0: number[];
  alpha: number[];
  weight: number[];
  gate: number[];
  kept: boolean[];
  c: number[];
}

export const range = (begin: number, end: number): number[] => Array.from({ length: end - begin }, (_, i) => begin + i);

export const logSumExp = (scores: number[]): number => {
  const largest = Math.max(...scores);
  return largest === -Infinity
    ? -Infinity
    : largest + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - largest), 0));
};

export const softmax = (scores: number[]): number[] => {
  const lse = logSumExp(scores);
  return scores.map((s) => (s === -Infinity ? 0 : Math.exp(s - lse)));
};

export function select(p: number[], topK: number, topP: number): boolean[] {
  const order = range(0, p.length).sort((i, j) => p[j]! - p[i]! || i - j);
  const kept = p.map(() => false);
  let before = 0;
  order.forEach((i, rank) => {
    kept[i] = (topK === 0 || rank < topK) && (topP === 0 || topP >= 1 || before < topP);
    before += p[i]!;
  });
  return kept;
}

function stage(p: number[], kept: boolean[], renormalize: boolean, set?: number[]): number[] {
  let q = p.map((value, i) => (kept[i] ? value : 0));
  const total = q.reduce((sum, value) => sum + value, 0);
  if (renormalize && total > 0) q = q.map((value) => value / total);
  if (!set?.some((value) => !Number.isNaN(value))) return q;
  const fixed = set.reduce((sum, value) => sum + (Number.isNaN(value) ? 0 : value), 0);
  const others = q.reduce((sum, value, i) => sum + (Number.isNaN(set[i]!) ? value : 0), 0);
  if (others > 0) return q.map((value, i) => (Number.isNaN(set[i]!) ? (value * (1 - fixed)) / others : set[i]!));
  return set.map((value) => (Number.isNaN(value) || fixed === 0 ? 0 : value / fixed));
}

export function route(
  shape: Shape,
  logits: ArrayLike<number>,
  options: Options = {},
  controls: Controls = {},
  parameters: Parameters = {},
  frozen?: ArrayLike<number | boolean>,
): Routed {
  const { groupStart } = shape;
  const groups = groupStart.length - 1;
  const experts = groupStart[groups]!;
  const members = (g: number) => range(groupStart[g]!, groupStart[g + 1]!);
  const expertDenied = range(0, experts).map((e) => Boolean(controls.expertDenied?.[e]));
  const groupDenied = range(0, groups).map(
    (g) => Boolean(controls.groupDenied?.[g]) || members(g).every((e) => expertDenied[e]),
  );
  const scaled = (score: number, bias: number | undefined, denied: boolean, temperature = 1) =>
    denied ? -Infinity : (score + (bias ?? 0)) / temperature;
  const setOf = (values: ArrayLike<number> | undefined, indices: number[]) =>
    values && values.length > 0 ? indices.map((i) => values[i]!) : undefined;
  const renormalize = options.renormalize ?? true;
  const frozenOf = (indices: number[]) => (frozen ? indices.map((i) => Boolean(frozen[i])) : undefined);

  const alpha0 = softmax(
    range(0, groups).map((g) => scaled(logits[g]!, controls.groupBias?.[g], groupDenied[g]!, options.groupTemperature)),
  );
  const keptGroups = frozenOf(range(0, groups)) ?? select(alpha0, options.groupTopK ?? 0, options.groupTopP ?? 0);
  const alpha = stage(alpha0, keptGroups, renormalize, setOf(controls.groupSet, range(0, groups)));

  const result: Routed = { alpha0, beta0: [], alpha, weight: [], gate: [], kept: [...keptGroups], c: [] };
  for (const g of range(0, groups)) {
    const own = members(g);
    const c = own.map((e) =>
      (options.conditional ?? true) ? logits[groups + e]! : alpha0[g]! * parameters.score![e]!,
    );
    const beta0 = softmax(
      own.map((e, i) => scaled(c[i]!, controls.expertBias?.[e], expertDenied[e]!, options.expertTemperature)),
    );
    const kept =
      frozenOf(own.map((e) => groups + e)) ?? select(beta0, options.expertTopK ?? 0, options.expertTopP ?? 0);
    const beta = stage(beta0, kept, renormalize, setOf(controls.expertSet, own));
    result.c.push(...c);
    result.beta0.push(...beta0);
    result.kept.push(...kept);
    result.weight.push(...beta.map((b) => b * alpha[g]!));
  }
  const lambda = parameters.lambda ?? 1;
  const rho = parameters.rho ?? 1;
  result.gate = [...result.weight.map((w) => lambda * rho * w), 1 - lambda];
  return result;
}

export interface Coefficients {
  groupBalance: number;
  expertBalance: number;
  zLoss: number;
  entropy: number;
  supervision: number;
}

const squaredVariation = (values: number[]): number => {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length;
  return variance / mean ** 2;
};

const entropy = (p: number[]): number => -p.reduce((sum, v) => sum + (v > 0 ? v * Math.log(v) : 0), 0);

/** Unweighted losses of one layer in the order of Coefficients. */
export function losses(
  shape: Shape,
  rows: { a: number[]; routed: Routed }[],
  rowWeight: ArrayLike<number>,
  groupTarget?: ArrayLike<number>,
  expertTarget?: ArrayLike<number>,
): number[] {
  const { groupStart } = shape;
  const groups = groupStart.length - 1;
  const experts = groupStart[groups]!;
  const members = (g: number) => range(groupStart[g]!, groupStart[g + 1]!);
  const mean = (value: (r: number) => number) => rows.reduce((sum, _, r) => sum + rowWeight[r]! * value(r), 0);
  const overGroups = (value: (g: number) => number) => range(0, groups).reduce((sum, g) => sum + value(g), 0) / groups;
  const pick = (values: number[], g: number) => members(g).map((e) => values[e]!);
  return [
    squaredVariation(range(0, groups).map((g) => mean((r) => rows[r]!.routed.alpha0[g]!))),
    overGroups((g) => squaredVariation(members(g).map((e) => mean((r) => rows[r]!.routed.beta0[e]!)))),
    mean((r) => logSumExp(rows[r]!.a) ** 2 + overGroups((g) => logSumExp(pick(rows[r]!.routed.c, g)) ** 2)),
    mean((r) => entropy(rows[r]!.routed.alpha0) + overGroups((g) => entropy(pick(rows[r]!.routed.beta0, g)))),
    mean((r) => {
      let sum = 0;
      for (const g of range(0, groups)) {
        const t = groupTarget?.[r * groups + g] ?? 0;
        if (t === 0) continue;
        sum -= t * Math.log(rows[r]!.routed.alpha0[g]!);
        for (const e of members(g)) {
          const share = expertTarget?.[r * experts + e] ?? 0;
          if (share > 0) sum -= t * share * Math.log(rows[r]!.routed.beta0[e]!);
        }
      }
      return sum;
    }),
  ];
}
