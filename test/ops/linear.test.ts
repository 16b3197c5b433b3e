import assert from 'node:assert/strict';
import type { Matrix } from '../helpers/ops.js';
import { run } from '../helpers/ops.js';
import { gateColumns, groupOf, type Shape, slice } from './linear-groups.js';
import { linear } from './reference/linear.js';
import { range } from './reference/router.js';
import { close, dot, matrix, onDevices, Random, row, sameBits } from './support.js';

const shapes: Shape[] = [
  { rows: 1, cols: 1, outputs: [1], ranks: [[1]] },
  { rows: 1, cols: 33, outputs: [17], ranks: [[1, 2, 5]], bias: true },
  {
    rows: 3,
    cols: 70,
    outputs: [16, 5, 5],
    ranks: [
      [4, 0, 3],
      [0, 8, 0],
      [0, 0, 0],
    ],
    bias: true,
  },
  {
    rows: 13,
    cols: 64,
    outputs: [48, 50],
    ranks: [
      [16, 8],
      [4, 128],
    ],
  },
  {
    rows: 9,
    cols: 40,
    outputs: [24],
    ranks: [[3, 6]],
    segments: [
      [1, 4, 0],
      [4, 4, 1],
      [4, 7, 1],
      [7, 8, -1],
    ],
  },
  {
    rows: 67,
    cols: 129,
    outputs: [35],
    ranks: [[7]],
    segments: [
      [0, 30, 1],
      [30, 67, 0],
    ],
  },
  { rows: 300, cols: 24, outputs: [20], ranks: [[2, 2]] },
  {
    rows: 150,
    cols: 72,
    outputs: [136, 40],
    ranks: [
      [24, 40],
      [1, 31],
    ],
    segments: [
      [0, 70, 0],
      [70, 71, 1],
      [75, 150, 1],
    ],
    bias: true,
  },
  { rows: 0, cols: 8, outputs: [4], ranks: [[2]] },
];

onDevices('linear: forward', (device, tolerance) => {
  const random = new Random(1);
  for (const shape of shapes) {
    const group = groupOf(random, shape);
    const out = run('linearForward', device, { ...group, pad: 3 });
    linear(group).forEach((y, m) => {
      close(out[`y${m}`], y, tolerance, `y${m} of ${JSON.stringify(shape)}`);
    });
  }
});

onDevices(
  'linear: no adapters, bf16 and f16 weights, residual in place and apart, a shrink input of its own',
  (device, tolerance) => {
    const random = new Random(2);
    const group = groupOf(random, { rows: 5, cols: 50, outputs: [31], ranks: [[4, 3]], bias: true });
    for (const dtype of ['bf16', 'f16']) {
      const small = group.modules.map(({ weight, bias }) => ({ weight, bias, dtype }));
      const plain = { ...group, modules: small, stacks: [], segments: [] };
      close(run('linearForward', device, { ...plain, pad: 1 }).y0, linear(plain)[0]!, tolerance, dtype);
    }
    const more = { ...group, residual: random.matrix(5, 31), shrinkX: random.matrix(5, 50) };
    for (const where of [{}, { residualInPlace: true }, { floats: true }, { residualInPlace: true, floats: true }]) {
      close(run('linearForward', device, { ...more, ...where, pad: 2 }).y0, linear(more)[0]!, tolerance, 'y0');
    }
  },
);

onDevices('linear: f32 results, rows that can and that cannot be copied in pieces', (device, tolerance) => {
  const random = new Random(8);
  for (const cols of [32, 33]) {
    for (const pad of [0, 1]) {
      const group = groupOf(random, { rows: 21, cols, outputs: [40], ranks: [[8, 16]] });
      const out = run('linearForward', device, { ...group, floats: true, pad, keepH: false });
      close(out.y0, linear(group)[0]!, tolerance, `y0 of ${cols} inputs, ${pad} apart`);
    }
  }
});

onDevices('linear: the gated intermediate is not rounded on its way into B', (device) => {
  const group = groupOf(new Random(12), { rows: 19, cols: 48, outputs: [40], ranks: [[24, 9]] });
  group.modules[0]!.weight.data.fill(0);
  const { y0, hg } = run('linearForward', device, { ...group, floats: true });
  const { b } = group.stacks[0]!.modules[0]!;
  const added = range(0, 19).flatMap((n) => range(0, 40).map((o) => dot(row({ cols: 33, data: hg }, n), row(b!, o))));
  close(y0, added, 2e-5, 'y0');
});

onDevices('linear: same bits for rows alone, in a batch, cut in pieces, and on two threads', (device) => {
  const random = new Random(4);
  const group = groupOf(random, {
    rows: 61,
    cols: 96,
    outputs: [48, 17],
    ranks: [
      [4, 9],
      [0, 16],
    ],
    bias: true,
  });
  const whole = run('linearForward', device, group);
  const two = run('linearForward', device, group, 2);
  for (const m of [0, 1]) sameBits(two[`y${m}`], whole[`y${m}`], 'two threads');
  for (const [begin, end] of [
    [0, 1],
    [60, 61],
    [0, 16],
    [16, 61],
    [5, 12],
    [30, 38],
    [7, 20],
    [11, 36],
    [13, 46],
  ] as const) {
    const part = run('linearForward', device, {
      ...group,
      x: slice(group.x, begin, end),
      routing: slice(group.routing, begin, end),
      segments: [{ begin: 0, end: end - begin, stack: 0 }],
    });
    group.modules.forEach(({ weight }, m) => {
      sameBits(
        part[`y${m}`],
        whole[`y${m}`].slice(begin * weight.rows, end * weight.rows),
        `rows ${begin} to ${end} of y${m}`,
      );
    });
  }
});

onDevices('linear: same bits for one row, few, many, and beside rows of other mixtures', (device) => {
  const random = new Random(9);
  const group = groupOf(random, {
    rows: 140,
    cols: 80,
    outputs: [200],
    ranks: [[8, 130]],
    segments: [
      [0, 5, 1],
      [5, 90, 0],
      [100, 140, 1],
    ],
  });
  // No row of the second segment selects expert 1: what skips it must not show.
  for (let n = 5; n < 90; ++n) group.routing.data[n * gateColumns + 1] = 0;
  for (const keepH of [true, false]) {
    const whole = run('linearForward', device, { ...group, keepH }).y0 as Float32Array;
    for (const [begin, end] of [
      [0, 1],
      [3, 17],
      [4, 6],
      [20, 84],
      [80, 140],
      [95, 96],
    ] as const) {
      const slice = (m: Matrix) => matrix(end - begin, m.cols, m.data.slice(begin * m.cols, end * m.cols));
      const within = (n: number) => Math.min(Math.max(n - begin, 0), end - begin);
      const part = run('linearForward', device, {
        ...group,
        keepH,
        x: slice(group.x),
        routing: slice(group.routing),
        segments: group.segments.map((own) => ({ ...own, begin: within(own.begin), end: within(own.end) })),
      });
      sameBits(part.y0, whole.slice(begin * 200, end * 200), `rows ${begin} to ${end}`);
    }
  }
});

/** A stack of one expert of rank 40 whose routing weighs every row by 1. */
function plainGroup(random: Random, x: Matrix) {
  const group = groupOf(random, { rows: x.rows, cols: x.cols, outputs: [35], ranks: [[40]] });
  return { ...group, x, routing: matrix(x.rows, gateColumns, new Float32Array(x.rows * gateColumns).fill(1)) };
}

onDevices('linear: f32 activations keep 16 bits beside weights of bf16', (device) => {
  if (!device.startsWith('cpu')) return;
  const random = new Random(21);
  for (const rows of [1, 5, 40]) {
    const exact = random.matrix(rows, 200);
    const group = plainGroup(random, { ...exact, data: exact.data.map((v) => v * (1 + random.uniform() / 64)) });
    const inBf16 = {
      ...group,
      modules: group.modules.map((module) => ({ ...module, dtype: 'bf16' })),
      stacks: group.stacks.map((stack) => ({
        ...stack,
        dtype: 'bf16',
        modules: stack.modules.map((module) => ({ ...module, dtype: 'bf16' })),
      })),
    };
    close(run('linearForward', device, inBf16).y0, linear(group)[0]!, 1e-5, `y0 of ${rows} rows`);
  }
});

onDevices('linear: activations that are not finite, tiny and huge, beside weights of bf16', (device) => {
  if (!device.startsWith('cpu')) return;
  const values = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 2 ** 100, 2 ** -100, 1e-40, 0];
  const x = matrix(
    values.length,
    50,
    values.flatMap((value) => [1, value, ...Array(48).fill(0)]),
  );
  const weight = matrix(
    3,
    50,
    Array.from({ length: 150 }, () => 0.5),
  );
  const { y0 } = run('linearForward', device, { x, modules: [{ weight, dtype: 'bf16' }], stacks: [], segments: [] });
  values.forEach((value, n) => {
    for (const y of y0.slice(3 * n, 3 * n + 3)) assert.equal(y, Math.fround(0.5 + 0.5 * value), `${value}`);
  });
});
