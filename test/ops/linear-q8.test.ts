import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { setVariable } from '../helpers/environment.js';
import type { Matrix } from '../helpers/ops.js';
import { run } from '../helpers/ops.js';
import { gateColumns, groupOf, type Shape, slice } from './linear-groups.js';
import { type Group, linear, linearGradients } from './reference/linear.js';
import { halves, quantized, quantizedRows } from './reference/q8.js';
import { close, matrix, onDevices, Random, sameBits } from './support.js';

/** The group with its weights as q8, and with the values that q8 stands for. */
function both(group: Group): { blocks: Group; exact: Group } {
  const blocks = group.modules.map((module) => ({ ...module, dtype: 'q8' }));
  const exact = group.modules.map((module) => ({ ...module, weight: quantized(module.weight).weights, dtype: 'f32' }));
  return { blocks: { ...group, modules: blocks }, exact: { ...group, modules: exact } };
}

const identity = (size: number) =>
  matrix(
    size,
    size,
    Float32Array.from({ length: size * size }, (_, i) => (i % (size + 1) === 0 ? 1 : 0)),
  );

/** On the CPU with activations as they are (AT_MOE_CPU_Q8), which a backend decides when it is made. */
function runUnquantized(op: string, device: string, args: object) {
  if (device !== 'cpu') return run(op, device, args);
  const restore = setVariable('AT_MOE_CPU_Q8', 'f32');
  try {
    return run(op, 'cpu/f32', args);
  } finally {
    restore();
  }
}

/** The values a device keeps of a weight, row by row: what comes out for single inputs of 1. */
function stored(device: string, weight: Matrix): Float32Array {
  const group = { x: identity(weight.cols), modules: [{ weight, dtype: 'q8' }], stacks: [], segments: [] };
  const out = runUnquantized('linearForward', device, { ...group, floats: true }).y0 as Float32Array;
  return weight.data.map((_, i) => out[(i % weight.cols) * weight.rows + Math.floor(i / weight.cols)]!);
}

onDevices('q8: what is stored of a weight is what the definition says', (device) => {
  const random = new Random(21);
  for (const [rows, cols] of [
    [1, 1],
    [3, 31],
    [17, 32],
    [5, 33],
    [16, 64],
    [33, 65],
    [20, 100],
    [40, 300],
  ] as const) {
    const weight = { rows, cols, data: Float32Array.from({ length: rows * cols }, () => random.uniform() - 0.5) };
    assert.deepEqual(stored(device, weight), quantized(weight).weights.data, `${rows} x ${cols}`);
  }
});

onDevices('q8: the scale of the largest magnitude on, just below and just above 127 times any scale', (device) => {
  const edges = [...halves].filter((_, code) => code > 0 && (device === 'cpu' || code % 97 === 1 || code > 0x7bfd));
  const largest = Float32Array.from(edges.flatMap((scale) => [127 * scale, 127 * scale, 127 * scale]));
  const bits = new Uint32Array(largest.buffer);
  for (let i = 0; i < bits.length; i++) bits[i]! += (i % 3) - 1;
  largest[largest.length - 1] = 127 * 65504;
  const cols = 64;
  const rows = Math.ceil(largest.length / 2);
  const data = Float32Array.from({ length: rows * cols }, (_, i) => {
    const most = largest[Math.floor(i / 32)] ?? 0;
    return i % 32 === 11 ? -most : (most * ((i % 29) - 14)) / 15;
  });
  const weight = { rows, cols, data };
  sameBits(stored(device, weight), quantized(weight).weights.data, 'weights');
});

onDevices('q8: blocks of zeros, of tiny, huge and mixed values', (device) => {
  const random = new Random(22);
  const largest = 127 * 65504;
  const rows: ((i: number) => number)[] = [
    () => 0,
    () => -0,
    (i) => (i % 3 === 0 ? 1e-40 : 0), // denormal in f32
    (i) => (i % 2 ? 2 ** -25 : -(2 ** -26)), // at most half the smallest scale
    (i) => (i === 4 ? 2 ** -24.5 : 0),
    () => (random.uniform() - 0.5) * 1e-5, // scales that are denormal in f16
    () => (random.uniform() - 0.5) * 1e-2,
    (i) => (i % 32 === 5 ? 1e4 : random.uniform()),
    (i) => (i % 2 ? largest : -largest),
    () => (random.uniform() - 0.5) * 2 * largest,
    (i) => (i % 5 === 0 ? 127 : (i % 11) - 5.5), // a scale of 1, and ties
    (i) => (i < 32 ? 0 : 1),
  ];
  const cols = 70;
  const data = Float32Array.from({ length: rows.length * cols }, (_, i) => rows[Math.floor(i / cols)]!(i % cols));
  const weight = { rows: rows.length, cols, data };
  const expected = quantized(weight);
  assert.deepEqual(
    stored(device, weight).map((w) => w + 0),
    expected.weights.data.map((w) => w + 0),
  );
  // The bounds that core/q8.h states, of the reference itself.
  data.forEach((w, i) => {
    const [row, at] = [Math.floor(i / cols), Math.floor((i % cols) / 32)];
    const own = data.subarray(row * cols + at * 32, Math.min(row * cols + at * 32 + 32, (row + 1) * cols));
    const most = own.reduce((top, value) => Math.max(top, Math.abs(value)), 0);
    const step = most >= 127 * 2 ** -14 ? (most / 127) * (1 + 2 ** -10) : most / 127 + 2 ** -24;
    assert.ok(Math.abs(w - expected.weights.data[i]!) <= (step / 2) * 1.00001, `element ${i}`);
  });
});

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
  { rows: 13, cols: 320, outputs: [48, 50], ranks: [[16, 8], [40]] },
  {
    rows: 67,
    cols: 129,
    outputs: [35],
    ranks: [[7]],
    segments: [
      [0, 30, 1],
      [32, 67, 0],
    ],
  },
  { rows: 150, cols: 72, outputs: [136, 40], ranks: [[24], [1]], bias: true },
  { rows: 0, cols: 8, outputs: [4], ranks: [[2]] },
];

const firstRows = (group: Group, end: number) => ({
  ...group,
  x: slice(group.x, 0, end),
  routing: slice(group.routing, 0, end),
  segments: [{ begin: 0, end, stack: 0 }],
});

onDevices('q8: forward of a group with adapters', (device, tolerance) => {
  const random = new Random(23);
  for (const shape of shapes) {
    const { blocks, exact } = both(groupOf(random, shape));
    const out = run('linearForward', device, { ...blocks, pad: 3 });
    const baseX = device === 'cpu' ? quantizedRows(exact.x) : exact.x;
    linear({ ...exact, baseX }).forEach((y, m) => {
      close(out[`y${m}`], y, tolerance, `y${m} of ${JSON.stringify(shape)}`);
    });
  }
});

onDevices('q8: same bits for one row, few, many, and on two threads', (device) => {
  const { blocks } = both(groupOf(new Random(24), { rows: 140, cols: 333, outputs: [150], ranks: [[8, 19]] }));
  const whole = run('linearForward', device, blocks).y0 as Float32Array;
  sameBits(run('linearForward', device, blocks, 2).y0, whole, 'two threads');
  for (const [begin, end] of [
    [0, 1],
    [3, 6],
    [20, 33],
    [0, 64],
    [60, 140],
  ] as const) {
    const part = run('linearForward', device, {
      ...blocks,
      x: slice(blocks.x, begin, end),
      routing: slice(blocks.routing, begin, end),
      segments: [{ begin: 0, end: end - begin, stack: 0 }],
    });
    sameBits(part.y0, whole.slice(begin * 150, end * 150), `rows ${begin} to ${end}`);
  }
});

/** Arguments of the backward, and the gradients of the outputs. */
function backwardOf(device: string, group: Group, random: Random, more: object) {
  const { rows } = group.x;
  const dy = group.modules.map(({ weight }) => random.matrix(rows, weight.rows));
  const forward = run('linearForward', device, group);
  const rank = group.stacks[0]!.a.rows;
  const args = {
    ...group,
    modules: group.modules.map((module, m) => ({ ...module, dy: dy[m] })),
    h: matrix(rows, rank, forward.h),
    hg: matrix(rows, rank, forward.hg),
    drouting: matrix(rows, gateColumns, new Float32Array(rows * gateColumns)),
    wantAdapters: true,
    ...more,
  };
  return { dy, args };
}

onDevices('q8: backward of a group with adapters', (device, tolerance) => {
  for (const [seed, shape] of shapes.entries()) {
    const random = new Random(30 + seed);
    const { blocks, exact } = both(groupOf(random, shape));
    const { dy, args } = backwardOf(device, blocks, random, { wantBias: true, pad: 1 });
    const out = run('linearBackward', device, args);
    const expected = linearGradients(exact, dy);
    const what = `of ${JSON.stringify(shape)}`;
    close(out.dx, expected.dx, tolerance, `dx ${what}`);
    close(out.drouting, expected.drouting, tolerance, `drouting ${what}`);
    exact.stacks.forEach((stack, s) => {
      close(out[`da${s}`], expected.da[s]!, tolerance, `da${s} ${what}`);
      stack.modules.forEach(({ b }, m) => {
        if (b) close(out[`db${s}_${m}`], expected.db[s]![m]!, tolerance, `db${s}_${m} ${what}`);
      });
    });
  }
});

onDevices('q8: the gradient of a weight is refused', (device) => {
  const random = new Random(40);
  const { blocks } = both(groupOf(random, { rows: 2, cols: 40, outputs: [5], ranks: [[1]] }));
  const { args } = backwardOf(device, blocks, random, { wantWeight: true });
  assert.throws(() => run('linearBackward', device, args), /module 0 has a weight of q8, which is not trained/);
});

onDevices('q8: where activations are f32 and not quantised, the bits of f32 weights of the same values', (device) => {
  if (device.includes('/')) return;
  const random = new Random(41);
  const { blocks, exact } = both(groupOf(random, { rows: 45, cols: 200, outputs: [70], ranks: [[8]], bias: true }));
  for (const end of [1, 6, 45]) {
    const own = runUnquantized('linearForward', device, firstRows(blocks, end)).y0;
    sameBits(own, run('linearForward', device, firstRows(exact, end)).y0, `${end} rows`);
  }
  const { dy, args } = backwardOf(device, blocks, random, {});
  const modules = exact.modules.map((module, m) => ({ ...module, dy: dy[m] }));
  sameBits(run('linearBackward', device, args).dx, run('linearBackward', device, { ...args, modules }).dx, 'dx');
});

test('q8 on the CPU: quantised activations give what unquantised ones do, up to their rounding', () => {
  const random = new Random(42);
  for (const shape of shapes) {
    const group = { ...both(groupOf(random, shape)).blocks, pad: 2 };
    const [own, unquantized] = [run('linearForward', 'cpu', group), runUnquantized('linearForward', 'cpu', group)];
    shape.outputs.forEach((_, m) => {
      close(own[`y${m}`], unquantized[`y${m}`], 2e-2, `y${m} of ${JSON.stringify(shape)}`);
    });
    assert.deepEqual(own.h, unquantized.h);
  }
  // Integers up to 127 are quantised to themselves, and all these sums are exact.
  const [cols, rows] = [100, 30];
  const integers = (length: number, most: number) =>
    Float32Array.from({ length }, (_, i) => (i % 32 === 0 ? most : random.integer(2 * most + 1) - most));
  const x = matrix(rows, cols, Array.from({ length: rows }, () => [...integers(cols, 127)]).flat());
  const weight = matrix(40, cols, Array.from({ length: 40 }, () => [...integers(cols, 127)]).flat());
  const group = { x, modules: [{ weight, dtype: 'q8' }], stacks: [], segments: [] };
  sameBits(run('linearForward', 'cpu', group).y0, runUnquantized('linearForward', 'cpu', group).y0, 'integers');
});

test('q8 on the CPU: blocks of zeros, of tiny, huge and non-finite activations', () => {
  const random = new Random(43);
  const cols = 70;
  const weight = random.matrix(20, cols, 0.5);
  const inputs: ((i: number) => number)[] = [
    () => 0,
    (i) => (i % 2 ? -0 : 1e-40),
    () => 2 ** -120, // below the smallest scale
    () => 2 ** -118,
    (i) => (i % 32 === 7 ? 1e30 : random.uniform()),
    (i) => (i < 32 ? 0 : random.uniform() - 0.5),
    (i) => (i === 69 ? Number.NaN : 1),
    (i) => (i === 3 ? Number.POSITIVE_INFINITY : 1),
    (i) => (i === 40 ? Number.NEGATIVE_INFINITY : 1),
    () => random.uniform() - 0.5,
  ];
  const x = matrix(
    inputs.length,
    cols,
    inputs.flatMap((input) => Array.from({ length: cols }, (_, i) => input(i))),
  );
  const group = { x, modules: [{ weight, dtype: 'q8' }], stacks: [], segments: [] };
  const y = run('linearForward', 'cpu', group).y0 as Float32Array;
  const expected = linear({
    ...group,
    modules: [{ weight: quantized(weight).weights }],
    baseX: quantizedRows(x),
    routing: matrix(0, 0, []),
  })[0]!;
  inputs.forEach((_, n) => {
    const own = y.slice(n * 20, (n + 1) * 20);
    if (x.data.slice(n * cols, (n + 1) * cols).every(Number.isFinite)) {
      close(own, expected.slice(n * 20, (n + 1) * 20), 1e-5, `row ${n}`, 0);
    } else {
      assert.ok(own.every(Number.isNaN), `row ${n}: ${own}`);
    }
  });
});

describe('q8 on the CPU: the same bits with every set of instructions that fuses multiply-adds', () => {
  const child = fileURLToPath(new URL('./q8-child.js', import.meta.url));
  const compute = (set?: string): { set: string; parts: string[] } => {
    const { AT_MOE_SIMD: _, ...env } = process.env;
    const output = execFileSync(process.execPath, [child], { env: { ...env, ...(set && { AT_MOE_SIMD: set }) } });
    return JSON.parse(output.toString());
  };
  const best = compute();
  const floats = (part: string) => new Float32Array(new Uint8Array(Buffer.from(part, 'base64')).buffer);
  for (const set of ['avx512vnni', 'avx512', 'avxvnni', 'avx2', 'i8mm', 'dotprod', 'base']) {
    const found = compute(set);
    const skip = found.set !== set && `this processor or build does not run ${set}`;
    test(`${set} beside ${best.set}`, { skip }, () => {
      const fuses = set !== 'base' || process.arch === 'arm64';
      found.parts.forEach((part, i) => {
        const [own, expected] = [floats(part), floats(best.parts[i]!)];
        if (fuses) sameBits(own, expected, `part ${i}`);
        else close(own, expected, 1e-5, `part ${i}`);
      });
    });
  }
});
