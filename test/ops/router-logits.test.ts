import { run } from '../helpers/ops.js';
import { range } from './reference/router.js';
import { close, dot, matrix, onDevices, Random, row, sameBits } from './support.js';

/** Of sums in f32, whatever the activations are. */
const tolerance = 1e-5;

/** Values that 16 bits would round. */
const inexact = (random: Random, rows: number, cols: number, scale = 1) =>
  matrix(
    rows,
    cols,
    random.array(rows * cols, scale).map((value) => value * (1 + 2 ** -12)),
  );

onDevices('router logits: the product for each segment, of weights that are not rounded', (device) => {
  const random = new Random(7);
  for (const [cols, pad] of [
    [37, 1],
    [1031, 0],
    [1200, 4],
  ] as const) {
    const x = random.matrix(47, cols);
    const layers = [3, 9].map((rows) => ({ weight: inexact(random, rows, cols, 0.3), bias: random.array(rows) }));
    const segments = [
      { begin: 0, end: 3, ...layers[0] },
      { begin: 3, end: 3, ...layers[1] },
      { begin: 4, end: 40, ...layers[1] },
      { begin: 40, end: 47, ...layers[1], bias: undefined },
    ];
    const { logits } = run('routerLogits', device, { x, cols: 9, segments, pad });
    for (const { begin, end, weight, bias } of segments) {
      for (const n of range(begin, end)) {
        const expected = range(0, weight!.rows).map((c) => (bias?.[c] ?? 0) + dot(row(weight!, c), row(x, n)));
        close(row({ cols: 9, data: logits }, n).slice(0, expected.length), expected, tolerance, `row ${n} of ${cols}`);
      }
    }
  }
});

onDevices('router logits: the same bits for a row alone and among others, cut anywhere, on two threads', (device) => {
  const random = new Random(8);
  const x = random.matrix(70, 530);
  const layer = { weight: inexact(random, 13, 530, 0.3), bias: random.array(13) };
  const all = { x, cols: 13, segments: [{ begin: 0, end: 70, ...layer }] };
  const whole = run('routerLogits', device, all).logits as Float32Array;
  sameBits(run('routerLogits', device, { ...all, pad: 3 }, 2).logits, whole, 'two threads');
  const cuts = [0, 1, 18, 70].map((begin, i, list) => ({ begin, end: list[i + 1] ?? 70, ...layer }));
  sameBits(run('routerLogits', device, { ...all, segments: cuts }).logits, whole, 'segments');
  for (const n of [0, 33, 69]) {
    const alone = { x: matrix(1, 530, row(x, n)), cols: 13, segments: [{ begin: 0, end: 1, ...layer }] };
    sameBits(run('routerLogits', device, alone).logits, whole.slice(13 * n, 13 * (n + 1)), `row ${n}`);
  }
});

onDevices('router logits backward: gradients of input, weight and bias, added to', (device) => {
  const random = new Random(9);
  for (const [rows, cols, columns, pad] of [
    [1, 5, 1, 2],
    [11, 96, 9, 4],
    [300, 533, 21, 1],
    [0, 8, 2, 0],
  ] as const) {
    const x = random.matrix(rows, cols);
    const weight = inexact(random, columns, cols, 0.3);
    const dlogits = inexact(random, rows, columns);
    const start = {
      dx: random.matrix(rows, cols),
      dweight: random.array(columns * cols),
      dbias: random.array(columns),
    };
    const out = run('routerLogitsBackward', device, { x, weight, dlogits, ...start, pad });
    const column = (m: typeof x, j: number) => range(0, m.rows).map((n) => m.data[n * m.cols + j]!);
    const slopes = range(0, columns).map((c) => column(dlogits, c));
    const inputs = range(0, cols).map((j) => column(x, j));
    const dx = range(0, rows * cols).map(
      (i) => start.dx.data[i]! + dot(row(dlogits, Math.floor(i / cols)), column(weight, i % cols)),
    );
    const dweight = slopes.flatMap((g, c) => inputs.map((own, j) => start.dweight[c * cols + j]! + dot(g, own)));
    close(out.dx ?? [], dx, tolerance, `dx of ${rows} x ${cols}`, 1);
    close(out.dweight, dweight, tolerance, 'dweight', 1);
    const dbias = slopes.map((g, c) => start.dbias[c]! + g.reduce((sum, value) => sum + value, 0));
    close(out.dbias, dbias, tolerance, 'dbias', 1);
    if (rows === 0) continue;
    const two = run('routerLogitsBackward', device, { x, weight, dlogits, ...start }, 2);
    for (const name of ['dx', 'dweight', 'dbias']) sameBits(two[name], out[name], `${name} on two threads`);
    const last = { x: matrix(1, cols, row(x, rows - 1)), dlogits: matrix(1, columns, row(dlogits, rows - 1)) };
    const alone = { ...last, weight, dx: matrix(1, cols, row(start.dx, rows - 1)) };
    sameBits(run('routerLogitsBackward', device, alone).dx, out.dx.slice(-cols), 'dx of the last row');
  }
});
