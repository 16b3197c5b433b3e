import { run } from '../helpers/ops.js';
import { rmsNorm } from './reference/elementwise.js';
import { close, dot, doubles, matrix, numericGradient, onDevices, Random, row, sameBits } from './support.js';

// [rows, cols, dim]: whole rows and heads, odd sizes, no rows
const shapes: [number, number, number][] = [
  [1, 1, 1],
  [1, 17, 17],
  [5, 64, 16],
  [3, 35, 7],
  [2, 2500, 2500],
  [37, 96, 32],
  [2, 1024, 512],
  [3, 520, 520],
  [0, 8, 8],
];

onDevices('rms_norm: forward, also in place', (device, tolerance) => {
  const random = new Random(1);
  for (const [rows, cols, dim] of shapes) {
    const x = random.matrix(rows, cols, 3);
    const gamma = random.array(dim);
    for (const where of [{}, { inPlace: true }, { floats: true }]) {
      const { y } = run('rmsNormForward', device, { x, gamma, dim, eps: 1e-5, ...where, pad: 3 });
      close(y, rmsNorm(x.data, gamma, 1e-5), tolerance, `y of ${rows} x ${cols} by ${dim}`);
    }
  }
  const tiny = matrix(1, 64, new Float32Array(64));
  close(
    run('rmsNormForward', device, { x: tiny, gamma: random.array(64), eps: 1e-5 }).y,
    new Float32Array(64),
    0,
    'zeros',
  );
});

onDevices('rms_norm: backward against finite differences', (device, tolerance) => {
  const random = new Random(2);
  for (const [rows, cols, dim] of [...shapes.filter((shape) => shape[1] < 500), [3, 130, 130] as const]) {
    const x = random.matrix(rows, cols, 2);
    const gamma = random.array(dim);
    const dy = random.matrix(rows, cols);
    const expected = numericGradient(doubles(x.data), (at) => dot(rmsNorm(at, gamma, 1e-5), dy.data));
    const expectedGamma = numericGradient(doubles(gamma), (at) => dot(rmsNorm(x.data, at, 1e-5), dy.data));
    const start = random.matrix(rows, cols);
    const dgamma = random.array(dim);
    const args = { x, dy, gamma, dim, eps: 1e-5, pad: 5 };
    const plain = run('rmsNormBackward', device, { ...args, dgamma });
    close(plain.dx, expected, tolerance, `dx of ${rows} x ${cols} by ${dim}`, 1);
    close(
      plain.dgamma,
      expectedGamma.map((v, i) => v + dgamma[i]!),
      tolerance,
      'dgamma',
      1,
    );
    close(run('rmsNormBackward', device, args).dx, expected, tolerance, 'dx without dgamma', 1);
    const mixed = run('rmsNormBackward', device, { ...args, dgamma, floatX: true });
    close(mixed.dx, expected, tolerance, 'dx of an f32 x', 1);
    close(mixed.dgamma, plain.dgamma, tolerance, 'dgamma of an f32 x', 1);
    const wide = run('rmsNormBackward', device, { ...args, dx: start, floats: true });
    const sum = expected.map((v, i) => v + start.data[i]!);
    close(wide.dx, sum, 1e-5, 'dx added, all in f32', 1);
    const inPlace = run('rmsNormBackward', device, { ...args, dgamma, inPlace: true });
    close(inPlace.dx, expected, tolerance, 'dx in place of dy', 1);
    sameBits(inPlace.dgamma, plain.dgamma, 'dgamma in place');
    close(
      run('rmsNormBackward', device, { ...args, dx: start }).dx,
      expected.map((v, i) => v + start.data[i]!),
      tolerance,
      'dx added',
      1,
    );
  }
});

onDevices('rms_norm: same bits alone, in a batch, and on two threads', (device) => {
  const random = new Random(3);
  const x = random.matrix(50, 200);
  const dy = random.matrix(50, 200);
  const gamma = random.array(200);
  const args = { x, dy, gamma, eps: 1e-6, dgamma: new Float32Array(200) };
  const forward = run('rmsNormForward', device, args);
  const backward = run('rmsNormBackward', device, args);
  sameBits(run('rmsNormForward', device, args, 2).y, forward.y, 'y');
  const two = run('rmsNormBackward', device, args, 2);
  sameBits(two.dx, backward.dx, 'dx');
  sameBits(two.dgamma, backward.dgamma, 'dgamma');
  const alone = run('rmsNormForward', device, { ...args, x: matrix(1, 200, row(x, 49)) });
  sameBits(alone.y, forward.y.slice(49 * 200), 'row 49');
});

onDevices('rms_norm: backward of long rows, the same bits cut by rows, aligned or not', (device, tolerance) => {
  const random = new Random(4);
  const rows = 70;
  for (const dim of [64, 520, 1000]) {
    const x = random.matrix(rows, dim);
    const dy = random.matrix(rows, dim);
    const gamma = random.array(dim);
    const args = { x, dy, gamma, eps: 1e-5, dgamma: new Float32Array(dim) };
    const whole = run('rmsNormBackward', device, { ...args, pad: 8 });
    const dx = new Float64Array(rows * dim);
    const dgamma = new Float64Array(dim);
    for (let n = 0; n < rows; ++n) {
      const [input, gradient] = [row(x, n), row(dy, n)];
      const t = gradient.map((v, j) => v * gamma[j]!);
      const r = 1 / Math.sqrt(dot(input, input) / dim + 1e-5);
      const slope = (r ** 3 * dot(input, t)) / dim;
      for (let j = 0; j < dim; ++j) {
        dx[n * dim + j] = r * t[j]! - slope * input[j]!;
        dgamma[j]! += gradient[j]! * input[j]! * r;
      }
    }
    close(whole.dx, dx, tolerance, `dx by ${dim}`);
    close(whole.dgamma, dgamma, 1e-5, `dgamma by ${dim}`);
    const odd = run('rmsNormBackward', device, { ...args, pad: 1 });
    sameBits(odd.dx, whole.dx, 'dx of unaligned rows');
    sameBits(odd.dgamma, whole.dgamma, 'dgamma of unaligned rows');
    const alone = { ...args, x: matrix(1, dim, row(x, 69)), dy: matrix(1, dim, row(dy, 69)) };
    sameBits(run('rmsNormBackward', device, alone).dx, whole.dx.slice(69 * dim), 'dx of row 69');
  }
});
