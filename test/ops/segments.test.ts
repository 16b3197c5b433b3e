import { run } from '../helpers/ops.js';
import { close, matrix, onDevices, Random, sameBits } from './support.js';

onDevices('sum_rows: adds runs of rows, empty ones too', (device) => {
  const random = new Random(1);
  for (const cols of [1, 33, 300]) {
    const input = random.matrix(90, cols);
    const out = random.matrix(4, cols);
    const runs = [
      { begin: 3, end: 70, row: 2 },
      { begin: 70, end: 70, row: 0 },
      { begin: 89, end: 90, row: 3 },
    ];
    const expected = Float64Array.from(out.data);
    for (const { begin, end, row } of runs) {
      for (let i = begin * cols; i < end * cols; ++i) expected[row * cols + (i % cols)]! += input.data[i]!;
    }
    const args = { in: input, out, runs, pad: 3 };
    close(run('sumRows', device, args).out, expected, 2e-6, 'out');
    const whole = run('sumRows', device, args).out;
    sameBits(run('sumRows', device, args, 2).out, whole, 'two threads');
    const half = run('sumRows', device, { ...args, runs: [{ begin: 3, end: 40, row: 2 }] }).out;
    const rest = { ...args, out: { ...out, data: half }, runs: [{ begin: 40, end: 70, row: 2 }, ...runs.slice(1)] };
    sameBits(run('sumRows', device, rest).out, whole, 'a run in two parts');
  }
});

onDevices('spread_rows: writes or adds a scaled record, and leaves other cells alone', (device) => {
  const random = new Random(2);
  const out = random.matrix(9, 7);
  const runs = [
    { begin: 1, end: 4, source: random.array(7), factor: 0.5 },
    { begin: 4, end: 4, source: random.array(7) },
    { begin: 6, end: 9, source: random.array(3) },
  ];
  for (const accumulate of [false, true]) {
    const expected = Float64Array.from(out.data);
    for (const { begin, end, source, factor } of runs) {
      for (let n = begin; n < end; ++n) {
        source.forEach((value, c) => {
          expected[n * 7 + c] = (factor ?? 1) * value + (accumulate ? out.data[n * 7 + c]! : 0);
        });
      }
    }
    close(run('spreadRows', device, { out, runs, accumulate, pad: 2 }).out, expected, 1e-6, 'out');
  }
  const long = run('spreadRows', device, {
    out: matrix(700, 40, new Float32Array(700 * 40)),
    runs: [{ begin: 0, end: 700, source: random.array(40).fill(3) }],
  });
  close(long.out, new Float32Array(700 * 40).fill(3), 0, 'a long run');
  sameBits(run('spreadRows', device, { out, runs: [] }).out, out.data, 'no runs');
  const written = run('spreadRows', device, {
    out: matrix(2, 1, [Number.NaN, 1]),
    runs: [{ begin: 0, end: 1, source: Float32Array.of(2) }],
  });
  close(written.out, [2, 1], 0, 'over NaN');
});
