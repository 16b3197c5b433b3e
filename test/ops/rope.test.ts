import { run } from '../helpers/ops.js';
import { rope } from './reference/elementwise.js';
import { close, matrix, onDevices, Random } from './support.js';

const invFreq = (half: number, theta = 10000) => Float64Array.from({ length: half }, (_, i) => theta ** (-i / half));

onDevices('rope: rotates q and k, far positions too, and backward is the inverse', (device, tolerance) => {
  const random = new Random(1);
  for (const [rows, heads, kvHeads, headDim] of [
    [1, 1, 1, 2],
    [5, 3, 1, 6],
    [33, 4, 2, 64],
    [2, 2, 2, 128],
    [0, 2, 1, 4],
  ] as const) {
    const q = random.matrix(rows, heads * headDim);
    const k = random.matrix(rows, kvHeads * headDim);
    const v = random.matrix(rows, kvHeads * headDim);
    const position = Int32Array.from({ length: rows }, (_, n) => (n === 0 ? 131071 : n * 7));
    const args = { headDim, invFreq: invFreq(headDim / 2), position, pad: 2 };
    const out = run('ropeForward', device, { q, k, v, ...args });
    close(out.q, rope(q.data, q.cols, position, args.invFreq), tolerance, 'q');
    close(out.k, rope(k.data, k.cols, position, args.invFreq), tolerance, 'k');
    const apart = run('ropeForward', device, { q, k, v, ...args, floats: true });
    close(apart.q, rope(q.data, q.cols, position, args.invFreq), tolerance, 'q from f32');
    close(apart.k, rope(k.data, k.cols, position, args.invFreq), tolerance, 'k from f32');
    const back = run('ropeBackward', device, {
      dq: matrix(rows, q.cols, out.q),
      dk: matrix(rows, k.cols, out.k),
      ...args,
    });
    close(back.dq, q.data, 2 * tolerance, 'dq');
    close(back.dk, k.data, 2 * tolerance, 'dk');
  }
});
