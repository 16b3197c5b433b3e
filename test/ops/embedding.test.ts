import { run } from '../helpers/ops.js';
import { close, matrix, onDevices, Random, row, sameBits } from './support.js';

onDevices('embedding: gathers rows', (device) => {
  const random = new Random(1);
  for (const [vocabulary, d, ids] of [
    [5, 1, [4]],
    [7, 33, [0, 6, 6, 3]],
    [300, 130, Array.from({ length: 65 }, () => random.integer(300))],
    [3, 8, []],
  ] as [number, number, number[]][]) {
    const table = random.matrix(vocabulary, d);
    for (const dtype of ['f32', 'bf16']) {
      const args = { table, dtype, ids: Int32Array.from(ids), rows: ids.length, pad: 3 };
      const { y } = run('embeddingForward', device, args);
      sameBits(y, Float32Array.from(ids.flatMap((id) => row(table, id))), `y from ${dtype}`);
    }
  }
});

onDevices('embedding backward: repeated ids are summed in row order, on any number of threads', (device) => {
  const random = new Random(2);
  const ids = Int32Array.from({ length: 300 }, (_, n) => (n % 3 === 0 ? 2 : random.integer(11)));
  const dy = random.matrix(300, 70);
  const dtable = random.array(11 * 70);
  const args = { ids, dy, dtable: matrix(11, 70, dtable), pad: 1 };
  const out = run('embeddingBackward', device, args);
  const expected = Float64Array.from(dtable);
  ids.forEach((id, n) => {
    for (let j = 0; j < 70; ++j) expected[id * 70 + j]! += dy.data[n * 70 + j]!;
  });
  close(out.dtable, expected, 1e-5, 'dtable');
  sameBits(run('embeddingBackward', device, args, 2).dtable, out.dtable, 'two threads');
  sameBits(
    run('embeddingBackward', device, { ids: new Int32Array(0), dy: matrix(0, 70, []), dtable: args.dtable }).dtable,
    dtable,
    'none',
  );
});
