import type { Matrix } from '../helpers/ops.js';
import { run } from '../helpers/ops.js';
import { gateColumns, groupOf, type Shape } from './linear-groups.js';
import { type Group, linear, linearGradients } from './reference/linear.js';
import { close, dot, doubles, matrix, numericGradient, onDevices, Random, sameBits } from './support.js';

const backwardShapes: Shape[] = [
  { rows: 1, cols: 1, outputs: [1], ranks: [[1]], bias: true },
  {
    rows: 4,
    cols: 9,
    outputs: [5, 3],
    ranks: [
      [2, 1],
      [0, 3],
    ],
    bias: true,
  },
  {
    rows: 5,
    cols: 6,
    outputs: [7],
    ranks: [[1, 2]],
    segments: [
      [0, 2, 1],
      [2, 2, 0],
      [2, 4, 0],
    ],
  },
  { rows: 3, cols: 5, outputs: [4, 4, 2], ranks: [[1], [0], [2]] },
  { rows: 0, cols: 4, outputs: [3], ranks: [[2]] },
];

onDevices('linear backward: against finite differences', (device, tolerance) => {
  const random = new Random(5);
  for (const shape of backwardShapes) {
    for (const dropout of [false, true]) {
      const group = groupOf(random, shape);
      if (dropout) group.shrinkX = random.matrix(shape.rows, shape.cols);
      const dy = shape.outputs.map((rows) => random.matrix(shape.rows, rows));
      const forward = run('linearForward', device, group);
      const rank = group.stacks[0]!.a.rows;
      const drouting = random.matrix(shape.rows, gateColumns);
      // Rows of no stack hold NaN in h and hg, and must not be read.
      const out = run('linearBackward', device, {
        ...group,
        modules: group.modules.map((module, m) => ({ ...module, dy: dy[m] })),
        h: matrix(shape.rows, rank, forward.h),
        hg: matrix(shape.rows, rank, forward.hg),
        drouting,
        wantWeight: true,
        wantBias: true,
        wantAdapters: true,
        pad: 3,
      });
      const what = `${JSON.stringify(shape)}${dropout ? ' with dropout' : ''}`;
      const loss = (moved: Group) => linear(moved).reduce((sum, y, m) => sum + dot(y, dy[m]!.data), 0);
      const check = (
        actual: Float32Array,
        source: ArrayLike<number>,
        name: string,
        place: (at: Float64Array) => Group,
        start?: Float32Array,
      ) => {
        const expected = numericGradient(doubles(source), (at) => loss(place(at)), 1e-3);
        close(actual, start ? expected.map((v, i) => v + start[i]!) : expected, tolerance, `${name} of ${what}`, 0.1);
      };
      const data = (m: Matrix, at: Float64Array) => ({ ...m, data: at as unknown as Float32Array });
      check(out.dx, group.x.data, 'dx', (at) => ({ ...group, x: data(group.x, at) }));
      if (dropout)
        check(out.shrinkDx, group.shrinkX!.data, 'shrinkDx', (at) => ({ ...group, shrinkX: data(group.shrinkX!, at) }));
      check(
        out.drouting,
        group.routing.data,
        'drouting',
        (at) => ({ ...group, routing: data(group.routing, at) }),
        drouting.data,
      );
      group.modules.forEach((module, m) => {
        const replace = (change: object) => ({
          ...group,
          modules: group.modules.map((own, i) => (i === m ? { ...own, ...change } : own)),
        });
        check(out[`dweight${m}`], module.weight.data, `dweight${m}`, (at) =>
          replace({ weight: data(module.weight, at) }),
        );
        check(out[`dbias${m}`], module.bias ?? new Float32Array(module.weight.rows), `dbias${m}`, (at) =>
          replace({ bias: at }),
        );
      });
      group.stacks.forEach((stack, s) => {
        const replace = (change: object) => ({
          ...group,
          stacks: group.stacks.map((own, i) => (i === s ? { ...own, ...change } : own)),
        });
        check(out[`da${s}`], stack.a.data, `da${s}`, (at) => replace({ a: data(stack.a, at) }));
        stack.modules.forEach((module, m) => {
          if (!module.b) return;
          const moved = (at: Float64Array) =>
            stack.modules.map((own, i) => (i === m ? { ...own, b: data(module.b!, at) } : own));
          check(out[`db${s}_${m}`], module.b.data, `db${s}_${m}`, (at) => replace({ modules: moved(at) }));
        });
      });
    }
  }
});

onDevices('linear backward: many rows, stacks that come back, f32 gradients of the outputs', (device, tolerance) => {
  const random = new Random(10);
  for (const floats of [false, true]) {
    const group = groupOf(random, {
      rows: 560,
      cols: 40,
      outputs: [136, 24],
      ranks: [
        [24, 9],
        [0, 16],
      ],
      segments: [
        [0, 270, 0],
        [270, 300, 1],
        [300, 550, 0],
      ],
    });
    const dy = group.modules.map(({ weight }) => random.matrix(560, weight.rows));
    const forward = run('linearForward', device, group);
    const rank = group.stacks[0]!.a.rows;
    const out = run('linearBackward', device, {
      ...group,
      floats,
      modules: group.modules.map((module, m) => ({ ...module, dy: dy[m] })),
      h: matrix(560, rank, forward.h),
      hg: matrix(560, rank, forward.hg),
      drouting: matrix(560, gateColumns, new Float32Array(560 * gateColumns)),
      wantWeight: true,
      wantBias: true,
      wantAdapters: true,
    });
    const expected = linearGradients(group, dy);
    close(out.dx, expected.dx, tolerance, 'dx');
    close(out.drouting, expected.drouting, tolerance, 'drouting');
    for (const m of [0, 1]) {
      close(out[`dweight${m}`], expected.dweight[m]!, tolerance, `dweight${m}`);
      close(out[`dbias${m}`], expected.dbias[m]!, tolerance, `dbias${m}`);
    }
    for (const s of [0, 1]) {
      close(out[`da${s}`], expected.da[s]!, tolerance, `da${s}`);
      for (const m of [0, 1]) close(out[`db${s}_${m}`], expected.db[s]![m]!, tolerance, `db${s}_${m}`);
    }
  }
});

onDevices('linear backward: more inputs and outputs than a tile has', (device, tolerance) => {
  const random = new Random(12);
  const group = groupOf(random, { rows: 130, cols: 300, outputs: [140], ranks: [[70, 3]] });
  const dy = [random.matrix(130, 140)];
  const forward = run('linearForward', device, group);
  const out = run('linearBackward', device, {
    ...group,
    modules: group.modules.map((module, m) => ({ ...module, dy: dy[m] })),
    h: matrix(130, 73, forward.h),
    hg: matrix(130, 73, forward.hg),
    drouting: matrix(130, gateColumns, new Float32Array(130 * gateColumns)),
    wantWeight: true,
    wantAdapters: true,
  });
  const expected = linearGradients(group, dy);
  close(out.dx, expected.dx, tolerance, 'dx');
  close(out.dweight0, expected.dweight[0]!, tolerance, 'dweight0');
  close(out.da0, expected.da[0]!, tolerance, 'da0');
  close(out.db0_0, expected.db[0]![0]!, tolerance, 'db0_0');
});

onDevices('linear backward: nothing is rounded where inputs and gradients are f32', (device) => {
  const random = new Random(11);
  const inexact = (m: Matrix) =>
    matrix(
      m.rows,
      m.cols,
      m.data.map((v) => v * (1 + 2 ** -12)),
    );
  const group = groupOf(random, { rows: 9, cols: 21, outputs: [13], ranks: [[1]] });
  const plain = { ...group, x: inexact(group.x), stacks: [], segments: [] };
  const dy = inexact(random.matrix(9, 13));
  const out = run('linearBackward', device, {
    ...plain,
    modules: plain.modules.map((module) => ({ ...module, dy })),
    floats: true,
    floatX: true,
    wantDx: false,
    wantWeight: true,
  });
  close(out.dweight0, linearGradients(plain, [dy]).dweight[0]!, 1e-6, 'dweight0');
});

onDevices(
  'linear backward: dx is added to on request, same bits alone, in a batch and on two threads',
  (device, tolerance) => {
    const random = new Random(6);
    const group = groupOf(random, { rows: 300, cols: 48, outputs: [33], ranks: [[5, 12]] });
    const dy = random.matrix(300, 33);
    const forward = run('linearForward', device, group);
    const args = (begin: number, end: number) => {
      const slice = (m: Matrix) => matrix(end - begin, m.cols, m.data.slice(begin * m.cols, end * m.cols));
      return {
        ...group,
        x: slice(group.x),
        routing: slice(group.routing),
        segments: [{ begin: 0, end: end - begin, stack: 0 }],
        modules: group.modules.map((module) => ({ ...module, dy: slice(dy) })),
        h: slice(matrix(300, 17, forward.h)),
        hg: slice(matrix(300, 17, forward.hg)),
        drouting: matrix(end - begin, gateColumns, new Float32Array((end - begin) * gateColumns)),
        wantAdapters: true,
      };
    };
    const whole = run('linearBackward', device, args(0, 300));
    const two = run('linearBackward', device, args(0, 300), 2);
    for (const name of ['dx', 'drouting', 'da0', 'db0_0']) sameBits(two[name], whole[name], `${name} on two threads`);
    for (const [begin, end] of [
      [0, 1],
      [299, 300],
      [7, 40],
    ] as const) {
      const part = run('linearBackward', device, args(begin, end));
      sameBits(part.dx, whole.dx.slice(begin * 48, end * 48), `dx of rows ${begin} to ${end}`);
      sameBits(
        part.drouting,
        whole.drouting.slice(begin * gateColumns, end * gateColumns),
        `drouting of rows ${begin} to ${end}`,
      );
    }
    const start = random.matrix(300, 48);
    const added = run('linearBackward', device, { ...args(0, 300), dx: start });
    close(
      added.dx,
      whole.dx.map((v: number, i: number) => v + start.data[i]!),
      tolerance,
      'dx added',
    );
  },
);
