import assert from 'node:assert/strict';
import fc from 'fast-check';
import { run } from '../helpers/ops.js';
import { type Options, type Routed, range, route } from './reference/router.js';
import { compare, parse, routeRows, width } from './router-support.js';
import { close, matrix, onDevices, Random, row, sameBits } from './support.js';

const shapes: number[][] = [
  [0, 1],
  [0, 3],
  [0, 1, 2, 3],
  [0, 2, 5, 6],
  [0, 4, 5, 12, 14],
  [0, 70, 71],
  [0, 1, 300, 303],
  range(0, 41).map((g) => 3 * g),
];
const optionsList: Options[] = [
  {},
  { groupTemperature: 0.7, expertTemperature: 1.3 },
  { groupTopK: 2, expertTopK: 2 },
  { groupTopP: 0.8, expertTopP: 0.7 },
  { expertTopK: 1, renormalize: false },
  { groupTopK: 1, groupTopP: 0.3, expertTopK: 3, expertTopP: 0.9 },
  { conditional: false, expertTemperature: 0.8 },
];

onDevices('router: every form against the reference', (device) => {
  const random = new Random(1);
  for (const groupStart of shapes) {
    const groups = groupStart.length - 1;
    const experts = groupStart[groups]!;
    for (const options of optionsList) {
      for (const rows of [1, 37]) {
        const logits = random.array(rows * (groups + experts), 2);
        const parameters = { score: random.array(experts), lambda: 0.7, rho: 3 };
        const actual = routeRows(device, { groupStart }, logits, options, {}, parameters);
        actual.forEach((routed, n) => {
          const own = logits.subarray(n * (groups + experts), (n + 1) * (groups + experts));
          compare(
            routed,
            route({ groupStart }, own, options, {}, parameters),
            `${groupStart} ${JSON.stringify(options)} ${n}`,
          );
        });
      }
    }
  }
});

onDevices('router: no rows, and segments of different mixtures in one call', (device) => {
  const random = new Random(2);
  assert.deepEqual(routeRows(device, { groupStart: [0, 2] }, new Float32Array(0)), []);
  const first = { groupStart: [0, 2, 3] };
  const second = { groupStart: [0, 1, 3, 4] };
  const cols = 7;
  const logits = random.matrix(6, cols, 2);
  const out = run('routerForward', device, {
    logits,
    records: 5,
    segments: [
      { begin: 0, end: 2, out: 0, groupStart: Int32Array.from(first.groupStart), groupTopK: 1 },
      { begin: 2, end: 2, out: 2, groupStart: Int32Array.from(first.groupStart) },
      { begin: 3, end: 6, out: 2, groupStart: Int32Array.from(second.groupStart), expertTopK: 1 },
    ],
  });
  const records = { cols: width(3, 4), data: out.routing as Float32Array };
  for (const [record, logitRow, shape, options] of [
    [0, 0, first, { groupTopK: 1 }],
    [1, 1, first, { groupTopK: 1 }],
    [2, 3, second, { expertTopK: 1 }],
    [4, 5, second, { expertTopK: 1 }],
  ] as const) {
    compare(parse(row(records, record), shape), route(shape, row(logits, logitRow), options), `record ${record}`);
  }
});

onDevices('router: pooled rows are averaged in order and the mean is kept', (device) => {
  const random = new Random(3);
  for (const conditional of [true, false]) {
    const groupStart = [0, 2, 5];
    const score = random.array(5);
    const logits = random.matrix(301, 7, 2);
    const out = run('routerForward', device, {
      logits,
      records: 2,
      segments: [
        { begin: 1, end: 300, out: 1, pooled: true, groupStart: Int32Array.from(groupStart), conditional, score },
        { begin: 300, end: 301, out: 0, pooled: true, groupStart: Int32Array.from(groupStart), conditional, score },
      ],
    });
    const mean = range(0, 7).map((j) => range(1, 300).reduce((sum, n) => sum + logits.data[n * 7 + j]!, 0) / 299);
    const expected = route({ groupStart }, mean, { conditional }, {}, { score });
    compare(parse(row({ cols: width(2, 5), data: out.routing }, 1), { groupStart }), expected, 'pooled');
    close(row({ cols: 7, data: out.logits }, 1), [...mean.slice(0, 2), ...expected.c], 1e-6, 'mean logits');
  }
});

onDevices('router: learned balance and scale', (device) => {
  const groupStart = [0, 2, 3];
  const logits = new Random(4).matrix(3, 5, 1);
  const out = run('routerForward', device, {
    logits,
    records: 3,
    segments: [
      {
        begin: 0,
        end: 3,
        out: 0,
        groupStart: Int32Array.from(groupStart),
        balance: Float32Array.of(-0.4),
        logScale: Float32Array.of(0.9),
      },
    ],
  });
  const parameters = { lambda: 1 / (1 + Math.exp(0.4)), rho: Math.exp(0.9) };
  for (const n of range(0, 3)) {
    const expected = route({ groupStart }, row(logits, n), {}, {}, parameters);
    compare(parse(row({ cols: width(2, 3), data: out.routing }, n), { groupStart }), expected, `row ${n}`);
  }
});

onDevices('router: a frozen selection replaces top-k and top-p', (device) => {
  const groupStart = [0, 2, 4];
  const logits = new Random(5).matrix(2, 6, 1);
  const frozen = Uint8Array.of(1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0);
  const out = run('routerForward', device, {
    logits,
    records: 2,
    segments: [{ begin: 0, end: 2, out: 0, groupStart: Int32Array.from(groupStart), groupTopK: 1, frozen }],
  });
  for (const n of [0, 1]) {
    const expected = route({ groupStart }, row(logits, n), { groupTopK: 1 }, {}, {}, frozen.subarray(n * 6, n * 6 + 6));
    compare(parse(row({ cols: width(2, 4), data: out.routing }, n), { groupStart }), expected, `row ${n}`);
  }
});

const shapeArbitrary = fc
  .array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 5 })
  .map((sizes) => sizes.reduce((starts, size) => [...starts, starts.at(-1)! + size], [0]));
const caseArbitrary = shapeArbitrary.chain((groupStart) =>
  fc.record({
    groupStart: fc.constant(groupStart),
    logits: fc
      .array(fc.integer({ min: -64, max: 64 }), {
        minLength: groupStart.length - 1 + groupStart.at(-1)!,
        maxLength: groupStart.length - 1 + groupStart.at(-1)!,
      })
      .map((values) => Float32Array.from(values, (v) => v / 16)),
    options: fc.record({
      groupTopK: fc.integer({ min: 0, max: 3 }),
      expertTopK: fc.integer({ min: 0, max: 3 }),
      groupTopP: fc.constantFrom(0, 0.31, 0.77, 1),
      expertTopP: fc.constantFrom(0, 0.31, 0.77, 1),
      groupTemperature: fc.constantFrom(0.5, 1, 2),
      expertTemperature: fc.constantFrom(0.5, 1, 2),
    }),
  }),
);
const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);

onDevices('router: weights sum to 1, stages too, and the selection rules hold', (device) => {
  fc.assert(
    fc.property(caseArbitrary, ({ groupStart, logits, options }) => {
      const [routed] = routeRows(device, { groupStart }, logits, options) as [Routed];
      for (const values of [routed.alpha0, routed.alpha, routed.weight]) close([sum(values)], [1], 1e-5, 'sum');
      const kept = routed.alpha.filter((value) => value > 0);
      if (options.groupTopK > 0) assert.ok(kept.length <= options.groupTopK);
      assert.ok(kept.length >= 1);
      const smallestKept = Math.min(...routed.alpha0.filter((_, g) => routed.alpha[g]! > 0));
      const largestDropped = Math.max(0, ...routed.alpha0.filter((_, g) => routed.alpha[g] === 0));
      assert.ok(smallestKept >= largestDropped);
      if (options.groupTopP > 0 && options.groupTopP < 1 && options.groupTopK === 0) {
        const mass = sum(routed.alpha0.filter((_, g) => routed.alpha[g]! > 0));
        assert.ok(mass >= options.groupTopP - 1e-5, 'the kept mass reaches p');
        assert.ok(mass - smallestKept < options.groupTopP + 1e-5, 'and not without its smallest entry');
      }
    }),
    { numRuns: 300 },
  );
});

onDevices('router: permuting groups and experts permutes the weights', (device) => {
  fc.assert(
    fc.property(caseArbitrary, fc.integer({ min: 1, max: 1 << 20 }), ({ groupStart, logits, options }, seed) => {
      const random = new Random(seed);
      const groups = groupStart.length - 1;
      const shuffled = <T>(items: T[]) =>
        items
          .map((item) => [random.uniform(), item] as const)
          .sort((a, b) => a[0] - b[0])
          .map(([, item]) => item);
      // A tie is broken by index, which a permutation changes: make all scores differ.
      const distinct = logits.map((value, i) => value + i / 512);
      const groupOrder = shuffled(range(0, groups));
      const expertOrder = groupOrder.map((g) => shuffled(range(groupStart[g]!, groupStart[g + 1]!)));
      const starts = expertOrder.reduce((s, own) => [...s, s.at(-1)! + own.length], [0]);
      const moved = Float32Array.from([
        ...groupOrder.map((g) => distinct[g]!),
        ...expertOrder.flat().map((e) => distinct[groups + e]!),
      ]);
      const [before] = routeRows(device, { groupStart }, distinct, options) as [Routed];
      const [after] = routeRows(device, { groupStart: starts }, moved, options) as [Routed];
      close(
        after.weight,
        expertOrder.flat().map((e) => before.weight[e]!),
        2e-6,
        'weights',
        1,
      );
      close(
        after.alpha,
        groupOrder.map((g) => before.alpha[g]!),
        2e-6,
        'group weights',
        1,
      );
    }),
    { numRuns: 100 },
  );
});

onDevices('router: groups of equal size and equal scores give the flat softmax over all experts', (device) => {
  const random = new Random(8);
  const groupStart = [0, 4, 8, 12];
  const scores = random.array(4, 2);
  // The same scores in every group: each group's mass is 1/3, and so is it in the flat softmax.
  const logits = Float32Array.from([1, 1, 1, ...scores, ...scores, ...scores]);
  const [grouped] = routeRows(device, { groupStart }, logits) as [Routed];
  const [flat] = routeRows(device, { groupStart: [0, 12] }, Float32Array.from([0, ...logits.subarray(3)])) as [Routed];
  close(grouped.weight, flat.weight, 1e-6, 'grouped and flat', 1);
  // Zero parameters: each group 1/G, whatever its size.
  const [zero] = routeRows(device, { groupStart: [0, 1, 5] }, new Float32Array(7)) as [Routed];
  close(zero.weight, [0.5, 0.125, 0.125, 0.125, 0.125], 1e-6, 'zero router', 1);
});

onDevices('router: ties go to the lower index', (device) => {
  const [routed] = routeRows(device, { groupStart: [0, 3, 6] }, new Float32Array(8), {
    groupTopK: 1,
    expertTopK: 2,
  }) as [Routed];
  close(routed.weight, [0.5, 0.5, 0, 0, 0, 0], 1e-6, 'weights', 1);
});

onDevices('router: large and equal scores do not overflow', (device) => {
  const logits = Float32Array.from([3e38, 3e38, -3e38, 3e38, 1, 1e4]);
  const [routed] = routeRows(device, { groupStart: [0, 2, 4] }, logits) as [Routed];
  close([sum(routed.weight)], [1], 1e-6, 'sum');
});

onDevices('router: same bits for a row alone, in a batch, and on two threads', (device) => {
  const groupStart = [0, 3, 8];
  const logits = new Random(9).matrix(100, 10, 2);
  const args = (m: typeof logits) => ({
    logits: m,
    records: m.rows,
    segments: [
      { begin: 0, end: m.rows, out: 0, groupStart: Int32Array.from(groupStart), groupTopP: 0.9, expertTopK: 2 },
    ],
  });
  const all = run('routerForward', device, args(logits)).routing as Float32Array;
  sameBits(run('routerForward', device, args(logits), 2).routing, all, 'two threads');
  const cols = width(2, 8);
  for (const n of [0, 57, 99]) {
    const alone = run('routerForward', device, args(matrix(1, 10, row(logits, n)))).routing as Float32Array;
    sameBits(alone, all.slice(n * cols, (n + 1) * cols), `row ${n}`);
  }
});

onDevices('router: a pooled sequence gives the same bits at any place of a batch', (device) => {
  const groupStart = Int32Array.of(0, 2, 40);
  const logits = new Random(10).matrix(90, 42, 2);
  const segment = { groupStart, pooled: true, expertTopK: 3 };
  const batch = run('routerForward', device, {
    logits,
    records: 3,
    segments: [
      { ...segment, begin: 0, end: 7, out: 2 },
      { ...segment, begin: 7, end: 80, out: 0 },
      { ...segment, begin: 80, end: 90, out: 1, groupTopK: 1 },
    ],
  }).routing as Float32Array;
  const alone = run('routerForward', device, {
    logits: matrix(73, 42, logits.data.slice(7 * 42, 80 * 42)),
    records: 1,
    segments: [{ ...segment, begin: 0, end: 73, out: 0 }],
  }).routing as Float32Array;
  sameBits(alone, batch.slice(0, alone.length), 'record');
});
