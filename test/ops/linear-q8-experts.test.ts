/** Stacks of q8, which the CPU alone takes: what meets A and B is quantised as what meets a base of q8 is. */
import { test } from 'node:test';
import { setVariable } from '../helpers/environment.js';
import type { Matrix } from '../helpers/ops.js';
import { run } from '../helpers/ops.js';
import { gateColumns, groupOf, type Shape, slice } from './linear-groups.js';
import { type Group, linear, linearGradients } from './reference/linear.js';
import { quantized, quantizedRows } from './reference/q8.js';
import { close, matrix, Random, sameBits } from './support.js';

/** The group with all its weights stored as a type. */
const storedAs = (dtype: string, group: Group) => ({
  ...group,
  modules: group.modules.map((module) => ({ ...module, dtype })),
  stacks: group.stacks.map((stack) => ({
    ...stack,
    dtype,
    modules: stack.modules.map((module) => ({ ...module, dtype })),
  })),
});
const inBlocks = (group: Group) => storedAs('q8', group);

const values = (weight: Matrix) => quantized(weight).weights;

/** The same with the values that q8 stands for. */
const exactly = (group: Group): Group => ({
  ...group,
  modules: group.modules.map((module) => ({ ...module, weight: values(module.weight) })),
  stacks: group.stacks.map((stack) => ({
    ...stack,
    a: values(stack.a),
    modules: stack.modules.map(({ b, first }) => (b ? { b: values(b), first } : { first })),
  })),
});

const shapes: Shape[] = [
  { rows: 1, cols: 33, outputs: [17], ranks: [[1, 2, 5]], bias: true },
  {
    rows: 3,
    cols: 70,
    outputs: [16, 5, 5],
    ranks: [
      [4, 0, 3],
      [0, 40, 0],
      [0, 0, 0],
    ],
  },
  { rows: 45, cols: 320, outputs: [48, 50], ranks: [[16, 8, 24], [40]], bias: true },
  {
    rows: 67,
    cols: 129,
    outputs: [35],
    ranks: [[7, 30, 16]],
    segments: [
      [0, 30, 1],
      [32, 67, 0],
    ],
  },
];

/** Gates that are zero for all rows (1) and for most (2), so that ranges begin and end inside blocks. */
function close12(group: Group): Group {
  group.routing.data.forEach((_, i) => {
    const [n, e] = [Math.floor(i / gateColumns), i % gateColumns];
    if (e === 1 || (e === 2 && n !== 7)) group.routing.data[i] = 0;
  });
  return group;
}

const columns = (m: Matrix, first: number, count: number) =>
  matrix(
    m.rows,
    count,
    Array.from({ length: m.rows * count }, (_, i) => m.data[Math.floor(i / count) * m.cols + first + (i % count)]!),
  );

test('q8 experts: A reads x quantised, B reads gated h quantised', () => {
  const random = new Random(60);
  for (const shape of shapes) {
    const group = close12(groupOf(random, shape));
    const exact = exactly(group);
    const out = run('linearForward', 'cpu', { ...inBlocks(group), pad: 3 });
    const x = quantizedRows(group.x);
    const [h, hg] = [out.h, out.hg].map((values: Float32Array) => matrix(shape.rows, group.stacks[0]!.a.rows, values));
    for (const { begin, end, stack } of group.segments) {
      const { a, gateColumn } = exact.stacks[stack]!;
      const raw = linear({ ...exact, x, modules: [{ weight: a }], stacks: [], segments: [] })[0]!;
      const gate = (i: number) => group.routing.data[Math.floor(i / a.rows) * gateColumns + gateColumn[i % a.rows]!]!;
      const expected = raw.map((sum, i) => (gate(i) === 0 ? 0 : sum));
      close(slice(h!, begin, end).data, expected.slice(begin * a.rows, end * a.rows), 1e-5, 'h');
    }
    const gated = exact.stacks[0]!.modules.map(({ b, first }) => quantizedRows(columns(hg!, first, b?.cols ?? 0)));
    linear({ ...exact, baseX: x, gated }).forEach((y, m) => {
      close(out[`y${m}`], y, 1e-5, `y${m} of ${JSON.stringify(shape)}`);
    });
  }
});

const rowsOf = (group: Group, begin: number, end: number) => ({
  ...group,
  x: slice(group.x, begin, end),
  routing: slice(group.routing, begin, end),
  segments: [{ begin: 0, end: end - begin, stack: 0 }],
});

test('q8 experts: same bits for one row, few, many, and on two threads', () => {
  const shape = { rows: 140, cols: 333, outputs: [150], ranks: [[8, 19, 40, 5, 30]] };
  const blocks = inBlocks(close12(groupOf(new Random(61), shape)));
  const whole = run('linearForward', 'cpu', blocks).y0 as Float32Array;
  sameBits(run('linearForward', 'cpu', blocks, 2).y0, whole, 'two threads');
  for (const [begin, end] of [
    [0, 1],
    [7, 8],
    [3, 6],
    [20, 33],
    [0, 64],
    [60, 140],
  ] as const) {
    const part = run('linearForward', 'cpu', rowsOf(blocks, begin, end)).y0;
    sameBits(part, whole.slice(begin * 150, end * 150), `rows ${begin} to ${end}`);
  }
});

test('q8 experts: where activations are not quantised, the bits of f32 weights of the same values', (t) => {
  t.after(setVariable('AT_MOE_CPU_Q8', 'f32'));
  const shape = { rows: 45, cols: 200, outputs: [70, 33], ranks: [[8, 30, 40, 3], [20]] };
  const group = close12(groupOf(new Random(62), shape));
  for (const end of [1, 6, 45]) {
    const own = run('linearForward', 'cpu/f32', rowsOf(inBlocks(group), 0, end));
    const floats = run('linearForward', 'cpu/f32', rowsOf(storedAs('f32', exactly(group)), 0, end));
    for (const name of ['y0', 'y1', 'hg']) sameBits(own[name], floats[name], `${name} of ${end} rows`);
  }
});

test('q8 experts: gradients are those of the values that q8 stands for', () => {
  const random = new Random(63);
  for (const shape of shapes) {
    const group = groupOf(random, shape);
    const dy = shape.outputs.map((cols) => random.matrix(shape.rows, cols));
    const blocks = inBlocks(group);
    const { h, hg } = run('linearForward', 'cpu', blocks);
    const rank = group.stacks[0]!.a.rows;
    const out = run('linearBackward', 'cpu', {
      ...blocks,
      modules: blocks.modules.map((module, m) => ({ ...module, dy: dy[m] })),
      h: matrix(shape.rows, rank, h),
      hg: matrix(shape.rows, rank, hg),
      drouting: matrix(shape.rows, gateColumns, new Float32Array(shape.rows * gateColumns)),
      wantAdapters: true,
    });
    // h differs by the rounding of what A read; all else is of x, g and the weights' exact values.
    const expected = linearGradients(exactly(group), dy);
    close(out.dx, expected.dx, 1e-5, 'dx');
    close(out.drouting, expected.drouting, 2e-2, 'drouting');
    exactly(group).stacks.forEach((stack, s) => {
      close(out[`da${s}`], expected.da[s]!, 1e-5, `da${s}`);
      stack.modules.forEach(({ b }, m) => {
        if (b) close(out[`db${s}_${m}`], expected.db[s]![m]!, 2e-2, `db${s}_${m}`);
      });
    });
  }
});
