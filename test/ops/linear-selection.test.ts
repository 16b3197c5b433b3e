import { test } from 'node:test';
import type { Matrix } from '../helpers/ops.js';
import { run } from '../helpers/ops.js';
import { gateColumns, groupOf, type Shape, slice } from './linear-groups.js';
import { type Group, linear, linearGradients } from './reference/linear.js';
import { range } from './reference/router.js';
import { close, matrix, onDevices, Random, sameBits } from './support.js';

onDevices('linear: experts that no row selects, and skewed selections', (device, tolerance) => {
  const random = new Random(3);
  const group = groupOf(random, {
    rows: 40,
    cols: 32,
    outputs: [33, 16],
    ranks: [
      [16, 16, 3],
      [1, 64, 16],
    ],
  });
  group.routing.data.forEach((_, i) => {
    const [n, e] = [Math.floor(i / gateColumns), i % gateColumns];
    if (e === 1 || (e === 2 && n !== 7)) group.routing.data[i] = 0;
  });
  for (const keepH of [true, false]) {
    const out = run('linearForward', device, { ...group, keepH, pad: 3 });
    linear(group).forEach((y, m) => {
      close(out[`y${m}`], y, tolerance, `y${m}`);
    });
  }
});

const experts = 64;
const general = experts;

/** Which experts a row selects: by default 4, each at random. */
type Select = (row: number, random: Random) => number[];
const topFour: Select = (_, random) => range(0, 4).map(() => random.integer(experts));

/** A group of 64 experts of which each row selects few, and a general adapter that some rows do without. */
function selectiveGroup(
  random: Random,
  shape: Omit<Shape, 'ranks' | 'gates'>,
  ranks: number[][],
  select: Select,
): Group {
  const group = groupOf(random, { ...shape, ranks, gates: experts + 1 });
  for (let n = 0; n < shape.rows; ++n) {
    const selected = select(n, random);
    if (n % 3 > 0) selected.push(general);
    const gates = group.routing.data.subarray(n * (experts + 1), (n + 1) * (experts + 1));
    gates.forEach((_, e) => {
      if (!selected.includes(e)) gates[e] = 0;
    });
  }
  return group;
}

const selective = (group: Group, which: (stack: number) => boolean): Group => ({
  ...group,
  stacks: group.stacks.map((stack, s) => ({ ...stack, selective: which(s) })),
});

/** Forward, and backward of dy with every gradient of the adapters. */
function runBoth(device: string, group: Group, dy: Matrix[], more: object = {}) {
  const forward = run('linearForward', device, { ...group, pad: 3, ...more });
  const rank = group.stacks[0]!.a.rows;
  const backward = run('linearBackward', device, {
    ...group,
    modules: group.modules.map((module, m) => ({ ...module, dy: dy[m] })),
    h: matrix(group.x.rows, rank, forward.h),
    hg: matrix(group.x.rows, rank, forward.hg),
    drouting: matrix(group.x.rows, experts + 1, new Float32Array(group.x.rows * (experts + 1))),
    wantAdapters: true,
    pad: 3,
    ...more,
  });
  return { ...forward, ...backward } as Record<string, Float32Array>;
}

const sixteen = [Array(experts).fill(16).concat(8)];
const mixed = [
  range(0, experts)
    .map((e) => [3, 16, 0, 5, 1, 2][e % 6]!)
    .concat(7),
  range(0, experts)
    .map((e) => (e < 20 ? 1 + (e % 9) : 0))
    .concat(16),
  range(0, experts + 1).map(() => 0),
];

const cases: [name: string, shape: Omit<Shape, 'ranks' | 'gates'>, ranks: number[][], select: Select][] = [
  ['four of 64', { rows: 150, cols: 20, outputs: [33] }, sixteen, topFour],
  ['mixed ranks', { rows: 140, cols: 24, outputs: [140, 21, 5], bias: true }, mixed, topFour],
  ['all rows one expert', { rows: 200, cols: 16, outputs: [40] }, sixteen, () => [5]],
  ['runs of rows', { rows: 150, cols: 16, outputs: [40, 17] }, mixed.slice(0, 2), (n) => [Math.floor(n / 40), 63]],
  ['one row', { rows: 128, cols: 16, outputs: [24] }, mixed.slice(0, 1), (n) => (n === 77 ? [9] : [])],
];

/** Gathered or not, every result has the same bits. */
function sameGathered(device: string, group: Group, dy: Matrix[], name: string) {
  const together = runBoth(device, group, dy);
  const all = selective(group, () => true);
  const gathered = runBoth(device, all, dy);
  for (const [key, values] of Object.entries(together)) sameBits(gathered[key]!, values, `${key} of ${name}`);
  const inference = run('linearForward', device, { ...all, keepH: false, pad: 3 });
  for (const m of dy.keys()) sameBits(inference[`y${m}`], together[`y${m}`]!, `y${m} of ${name} alone`);
}

onDevices('linear: gathered by expert has the bits of all experts together', (device) => {
  const random = new Random(12);
  for (const [name, shape, ranks, select] of cases) {
    const group = selectiveGroup(random, shape, ranks, select);
    const dy = shape.outputs.map((cols) => random.matrix(shape.rows, cols));
    sameGathered(device, group, dy, name);
  }
});

onDevices('linear: gathered beside base weights of q8', (device) => {
  const random = new Random(15);
  const group = selectiveGroup(random, { rows: 150, cols: 40, outputs: [72, 21] }, mixed.slice(0, 2), topFour);
  const modules = group.modules.map((module) => ({ ...module, dtype: 'q8' }));
  const dy = modules.map(({ weight }) => random.matrix(150, weight.rows));
  sameGathered(device, { ...group, modules }, dy, 'q8');
});

test('linear: gathered with experts and base of q8', () => {
  const random = new Random(16);
  const group = selectiveGroup(random, { rows: 150, cols: 40, outputs: [72, 21] }, mixed.slice(0, 2), topFour);
  const blocks = <T extends object>(weight: T) => ({ ...weight, dtype: 'q8' });
  const modules = group.modules.map(blocks);
  const stacks = group.stacks.map((stack) => ({ ...blocks(stack), modules: stack.modules.map(blocks) }));
  const dy = modules.map(({ weight }) => random.matrix(150, weight.rows));
  for (const [name, of] of [
    ['experts', group.modules],
    ['both', modules],
  ] as const) {
    sameGathered('cpu', { ...group, modules: of, stacks }, dy, name);
  }
});

onDevices('linear: selective mixtures beside others in a call', (device, tolerance) => {
  const random = new Random(13);
  const segments: Shape['segments'] = [
    [0, 5, 1],
    [5, 135, 0],
    [138, 268, 1],
    [268, 275, 0],
  ];
  const shape = { rows: 276, cols: 16, outputs: [24, 18], segments };
  const group = selectiveGroup(random, shape, mixed.slice(0, 2), topFour);
  const dy = shape.outputs.map((cols) => random.matrix(shape.rows, cols));
  const dropped = { ...group, shrinkX: random.matrix(shape.rows, shape.cols) };
  const expected = linearGradients(group, dy);
  for (const which of [() => true, (s: number) => s === 0]) {
    const out = runBoth(device, selective(group, which), dy);
    linear(group).forEach((y, m) => {
      close(out[`y${m}`]!, y, tolerance, `y${m}`);
    });
    close(out.dx!, expected.dx, tolerance, 'dx');
    close(out.drouting!, expected.drouting, tolerance, 'drouting');
    for (const s of [0, 1]) {
      close(out[`da${s}`]!, expected.da[s]!, tolerance, `da${s}`);
      for (const m of [0, 1]) close(out[`db${s}_${m}`]!, expected.db[s]![m]!, tolerance, `db${s}_${m}`);
    }
    const y = run('linearForward', device, selective(dropped, which));
    linear(dropped).forEach((values, m) => {
      close(y[`y${m}`], values, tolerance, `y${m} of a shrink input of its own`);
    });
  }
});

onDevices('linear: rows of a gathered product alone, few, and cut, on two threads', (device) => {
  const random = new Random(14);
  const rows = 290;
  const group = selective(selectiveGroup(random, { rows, cols: 24, outputs: [40] }, [mixed[0]!], topFour), () => true);
  const dy = random.matrix(rows, 40);
  const cut = (begin: number, end: number) => ({
    ...group,
    x: slice(group.x, begin, end),
    routing: slice(group.routing, begin, end),
    segments: [{ begin: 0, end: end - begin, stack: 0 }],
  });
  const whole = runBoth(device, group, [dy]);
  for (const [begin, end] of [
    [0, 1],
    [20, 27],
    [3, 19],
    [100, 289],
    [200, 290],
  ] as const) {
    const part = runBoth(device, cut(begin, end), [slice(dy, begin, end)]);
    for (const key of ['y0', 'h', 'hg', 'dx', 'dh', 'drouting']) {
      const cols = whole[key]!.length / rows;
      sameBits(part[key]!, whole[key]!.slice(begin * cols, end * cols), `${key} of rows ${begin} to ${end}`);
    }
  }
  const two = run('linearForward', device, group, 2);
  sameBits(two.y0, whole.y0!, 'two threads');
});
