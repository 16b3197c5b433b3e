import { type Matrix, run } from '../helpers/ops.js';
import { type Coefficients, losses, type Options, range, route } from './reference/router.js';
import { close, dot, doubles, matrix, numericGradient, onDevices, Random, row, sameBits } from './support.js';

interface Case {
  name: string;
  groupStart: number[];
  rows: number;
  options?: Options;
  coefficients?: Partial<Coefficients>;
  learned?: boolean;
}

const all: Coefficients = { groupBalance: 0.3, expertBalance: 0.2, zLoss: 0.05, entropy: -0.1, supervision: 0.4 };
const none: Coefficients = { groupBalance: 0, expertBalance: 0, zLoss: 0, entropy: 0, supervision: 0 };
const cases: Case[] = [
  { name: 'dense', groupStart: [0, 2, 5, 6], rows: 3 },
  { name: 'one group', groupStart: [0, 3], rows: 2, coefficients: all },
  { name: 'groups of one', groupStart: [0, 1, 2], rows: 2, coefficients: all },
  {
    name: 'temperatures',
    groupStart: [0, 2, 4],
    rows: 2,
    options: { groupTemperature: 0.6, expertTemperature: 1.7 },
    coefficients: all,
  },
  { name: 'top-k', groupStart: [0, 3, 5, 9], rows: 3, options: { groupTopK: 2, expertTopK: 2 }, learned: true },
  { name: 'top-p', groupStart: [0, 3, 5, 9], rows: 3, options: { groupTopP: 0.8, expertTopP: 0.7 }, coefficients: all },
  {
    name: 'not rescaled',
    groupStart: [0, 3, 5],
    rows: 3,
    options: { expertTopK: 1, groupTopP: 0.7, renormalize: false },
  },
  { name: 'learned balance and scale', groupStart: [0, 2, 4], rows: 3, learned: true, coefficients: all },
  {
    name: 'static',
    groupStart: [0, 3, 5],
    rows: 3,
    options: { conditional: false, expertTemperature: 0.8 },
    coefficients: all,
  },
  {
    name: 'static top-k, learned',
    groupStart: [0, 3, 5],
    rows: 2,
    options: { conditional: false, groupTopK: 1, expertTopK: 2 },
    coefficients: all,
    learned: true,
  },
  ...(['groupBalance', 'expertBalance', 'zLoss', 'entropy', 'supervision'] as const).map((name) => ({
    name: `${name} alone`,
    groupStart: [0, 2, 5],
    rows: 4,
    coefficients: { [name]: 1 },
  })),
  { name: 'no rows', groupStart: [0, 2, 4], rows: 0, coefficients: all },
];

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** Device arguments of a case: forward records, targets, row weights. */
function prepare(device: string, { groupStart, rows, options = {}, learned }: Case, random: Random) {
  const groups = groupStart.length - 1;
  const experts = groupStart[groups]!;
  const logits = random.matrix(rows, groups + experts, 1.5);
  const score = random.array(experts);
  const layer = {
    groupStart: Int32Array.from(groupStart),
    ...options,
    score,
    ...(learned
      ? { balance: Float32Array.of(0.3), logScale: Float32Array.of(-0.2) }
      : { balanceConstant: 0.6, scaleConstant: 2 }),
  };
  const forward = run('routerForward', device, {
    logits,
    records: rows,
    segments: [{ ...layer, begin: 0, end: rows, out: 0 }],
  });
  const cols = 2 * groups + 3 * experts + 1;
  const shares = range(0, rows).map(() => 0.2 + random.uniform());
  const total = shares.reduce((sum, share) => sum + share, 0);
  // Labels: the first row has none, the others one group or two, and an expert in the first of them.
  const groupTarget = new Float32Array(rows * groups);
  const expertTarget = new Float32Array(rows * experts);
  for (const r of range(1, Math.max(1, rows))) {
    const labelled = r % 2 === 0 && groups > 1 ? [0, groups - 1] : [r % groups];
    for (const g of labelled) groupTarget[r * groups + g] = 1 / labelled.length;
    expertTarget[r * experts + groupStart[labelled[0]!]!] = 1;
  }
  return {
    groups,
    experts,
    logits,
    score,
    args: {
      ...layer,
      logits: matrix(rows, groups + experts, forward.logits),
      routing: matrix(rows, cols, forward.routing),
      drouting: random.matrix(rows, cols),
      rowWeight: Float32Array.from(shares, (share) => share / total),
      groupTarget,
      expertTarget,
      dscore: new Float32Array(experts),
      dbalance: new Float32Array(1),
      dlogScale: new Float32Array(1),
      pad: 3,
    },
  };
}

for (const entry of cases) {
  onDevices(`router backward: ${entry.name}`, (device) => {
    const options = entry.options ?? {};
    const coefficients = { ...none, ...entry.coefficients };
    const { groups, experts, logits, score, args } = prepare(device, entry, new Random(11));
    const out = run('routerBackward', device, { ...args, ...coefficients });
    const conditional = options.conditional ?? true;
    const shape = { groupStart: entry.groupStart };
    const gateColumn = 2 * groups + 2 * experts;
    const kept = range(0, entry.rows).map((r) => route(shape, row(logits, r), options, {}, { score }).kept);

    // [logits | score | balance | log scale] -> the loss whose gradient the op computes
    const start = doubles([...logits.data, ...score, 0.3, -0.2]);
    const lossesAt = (at: Float64Array) => {
      const scores = at.subarray(logits.data.length, logits.data.length + experts);
      const [balance, logScale] = at.subarray(-2);
      const parameters = entry.learned
        ? { score: scores, lambda: sigmoid(balance!), rho: Math.exp(logScale!) }
        : { score: scores, lambda: 0.6, rho: 2 };
      const rows = range(0, entry.rows).map((r) => {
        const own = at.subarray(r * (groups + experts), (r + 1) * (groups + experts));
        return { a: [...own.subarray(0, groups)], routed: route(shape, own, options, {}, parameters, kept[r]) };
      });
      const aux =
        entry.rows > 0 ? losses(shape, rows, args.rowWeight, args.groupTarget, args.expertTarget) : [0, 0, 0, 0, 0];
      const gates = rows.reduce(
        (sum, { routed }, r) => sum + dot(routed.gate, row(args.drouting, r).slice(gateColumn)),
        0,
      );
      return { aux, total: gates + dot(aux, Object.values(coefficients)) };
    };
    close(out.losses, lossesAt(start).aux, 1e-5, 'losses');

    const numeric = numericGradient(start, (at) => lossesAt(at).total, 1e-6);
    const cols = conditional ? groups + experts : groups;
    const expected = range(0, entry.rows).flatMap((r) => [
      ...numeric.subarray(r * (groups + experts), r * (groups + experts) + cols),
    ]);
    close(out.dlogits, expected, 1e-5, 'dlogits', 0.1);
    const tail = numeric.subarray(logits.data.length);
    if (!conditional) close(out.dscore, tail.subarray(0, experts), 1e-5, 'dscore', 0.1);
    if (entry.learned) close([out.dbalance[0], out.dlogScale[0]], tail.subarray(-2), 1e-5, 'dbalance, dlogScale', 0.1);
  });
}

onDevices('router backward: adds to parameter gradients, and two threads give the same bits', (device) => {
  const entry: Case = { name: '', groupStart: [0, 3, 5], rows: 200, options: { conditional: false }, learned: true };
  const { args } = prepare(device, entry, new Random(12));
  const once = run('routerBackward', device, { ...args, ...all });
  const twice = run('routerBackward', device, { ...args, ...all, dscore: once.dscore, dbalance: once.dbalance }, 2);
  close(
    twice.dscore,
    once.dscore.map((v: number) => 2 * v),
    1e-6,
    'dscore',
  );
  close(
    twice.dbalance,
    once.dbalance.map((v: number) => 2 * v),
    1e-6,
    'dbalance',
  );
  sameBits(twice.dlogits, once.dlogits, 'dlogits');
});

onDevices('router backward: many rows and wide groups as on the CPU, and a row alone', (device) => {
  for (const conditional of [true, false]) {
    for (const [groupStart, options] of [
      [[0, 1, 40, 75], { groupTopK: 2, expertTopP: 0.6, expertTemperature: 0.9 }],
      [range(0, 41).map((g) => 2 * g), { groupTopP: 0.5 }],
    ] as const) {
      const entry: Case = { name: '', groupStart: [...groupStart], rows: 131, options: { ...options, conditional } };
      const { groups, experts, args } = prepare('cpu', { ...entry, learned: true }, new Random(13));
      const expected = run('routerBackward', 'cpu', { ...args, ...all });
      const actual = run('routerBackward', device, { ...args, ...all });
      for (const name of ['losses', 'dlogits', 'dscore', 'dbalance', 'dlogScale']) {
        close(actual[name], expected[name], 1e-5, name);
      }
      // Without the balance losses, whose means are over the call, a row's gradient is its own.
      const unbalanced = { ...args, ...all, groupBalance: 0, expertBalance: 0 };
      const together = run('routerBackward', device, unbalanced);
      const cols = together.dlogits.length / 131;
      for (const r of [0, 70, 130]) {
        const own = (m: Matrix) => matrix(1, m.cols, row(m, r));
        const alone = run('routerBackward', device, {
          ...unbalanced,
          logits: own(args.logits),
          routing: own(args.routing),
          drouting: own(args.drouting),
          rowWeight: args.rowWeight.slice(r, r + 1),
          groupTarget: args.groupTarget.slice(r * groups, (r + 1) * groups),
          expertTarget: args.expertTarget.slice(r * experts, (r + 1) * experts),
        });
        sameBits(alone.dlogits, together.dlogits.slice(r * cols, (r + 1) * cols), `row ${r}`);
      }
    }
  }
});
