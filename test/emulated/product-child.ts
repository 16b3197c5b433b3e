import { run } from '../helpers/ops.js';
import { Random } from '../ops/support.js';

/** Prints the outputs of a linear in bf16 on the emulated device, for each number of rows. */
const random = new Random(1);
const x = random.matrix(200, 200);
const weight = random.matrix(300, 200);
const outputs = [1, 200].map((rows) => {
  const args = { x: { rows, cols: 200, data: x.data.slice(0, rows * 200) }, modules: [{ weight }], floats: true };
  return [...run('linearForward', 'emulated/bf16', { ...args, stacks: [], segments: [] }).y0.slice(0, 300)];
});
process.stdout.write(JSON.stringify(outputs));
