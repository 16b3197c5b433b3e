import { type Matrix, run } from '../helpers/ops.js';
import { swiglu } from './reference/elementwise.js';
import { close, dot, doubles, matrix, numericGradient, onDevices, Random, row, sameBits } from './support.js';

const shapes: [number, number][] = [
  [1, 1],
  [3, 19],
  [7, 67],
  [2, 96],
  [0, 5],
];

onDevices('swiglu: forward and backward, also in place', (device, tolerance) => {
  const random = new Random(1);
  for (const [rows, cols] of shapes) {
    const gate = random.matrix(rows, cols, 4);
    const up = random.matrix(rows, cols);
    const dy = random.matrix(rows, cols);
    close(run('swigluForward', device, { gate, up, pad: 3 }).y, swiglu(gate.data, up.data), tolerance, 'y');
    const dgate = numericGradient(doubles(gate.data), (at) => dot(swiglu(at, up.data), dy.data));
    const dup = numericGradient(doubles(up.data), (at) => dot(swiglu(gate.data, at), dy.data));
    for (const inPlace of [false, true]) {
      const out = run('swigluBackward', device, { gate, up, dy, inPlace, pad: 3 });
      close(out.dgate, dgate, tolerance, 'dgate');
      close(out.dup, dup, tolerance, 'dup');
    }
  }
});

onDevices('swiglu: wide rows, the same bits cut by rows, aligned or not', (device, tolerance) => {
  const random = new Random(3);
  const rows = 3;
  const cols = 2312;
  const args = { gate: random.matrix(rows, cols, 4), up: random.matrix(rows, cols), dy: random.matrix(rows, cols) };
  const { y } = run('swigluForward', device, { ...args, pad: 8 });
  close(y, swiglu(args.gate.data, args.up.data), tolerance, 'y');
  sameBits(run('swigluForward', device, { ...args, pad: 1 }).y, y, 'y of unaligned rows');
  const whole = run('swigluBackward', device, { ...args, pad: 8 });
  const odd = run('swigluBackward', device, { ...args, pad: 1 });
  const last = (m: Matrix) => matrix(1, cols, row(m, rows - 1));
  const part = run('swigluBackward', device, { gate: last(args.gate), up: last(args.up), dy: last(args.dy) });
  for (const name of ['dgate', 'dup']) {
    sameBits(odd[name], whole[name], `${name} of unaligned rows`);
    sameBits(part[name], whole[name].slice((rows - 1) * cols), `${name} of the last row`);
  }
});

onDevices('swiglu: saturates without NaN, keeps NaN, same bits on two threads', (device, tolerance) => {
  const huge = device.endsWith('/f16') ? 6e4 : 1e30;
  const gate = matrix(1, 8, [-huge, -200, -89, -88, 88, 89, 200, huge]);
  const up = matrix(1, 8, new Float32Array(8).fill(1));
  const expected = [0, 0, 0, 0, 88, 89, 200, huge];
  const { y } = run('swigluForward', device, { gate, up });
  close(y.subarray(0, 7), expected.slice(0, 7), tolerance, 'y');
  close([y[7] / huge], [1], tolerance, 'largest');
  const nan = run('swigluForward', device, { gate: matrix(1, 1, [Number.NaN]), up: matrix(1, 1, [1]) }).y;
  if (!Number.isNaN(nan[0])) throw new Error('a NaN was lost');
  const random = new Random(2);
  const args = { gate: random.matrix(40, 300), up: random.matrix(40, 300) };
  sameBits(run('swigluForward', device, args, 2).y, run('swigluForward', device, args).y, 'two threads');
});
