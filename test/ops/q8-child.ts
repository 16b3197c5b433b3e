/** Prints the set of kernels that AT_MOE_SIMD leaves this process, and y of a q8 product that it computes. */
import { devices } from '../../lib/index.js';
import { run } from '../helpers/ops.js';
import { groupOf } from './linear-groups.js';
import { Random } from './support.js';

const group = groupOf(new Random(50), { rows: 45, cols: 333, outputs: [150], ranks: [[8, 3]], bias: true });
const modules = group.modules.map((module) => ({ ...module, dtype: 'q8' }));
const blocks = group.stacks.map((stack) => ({
  ...stack,
  dtype: 'q8',
  modules: stack.modules.map((module) => ({ ...module, dtype: 'q8' })),
}));
const parts = [group.stacks, blocks].flatMap((stacks) =>
  [1, 2, 3, 5, 7, 45].map((rows) => {
    const x = { ...group.x, rows, data: group.x.data.slice(0, rows * group.x.cols) };
    const args = { ...group, modules, stacks, x, segments: [{ begin: 0, end: rows, stack: 0 }] };
    return run('linearForward', 'cpu', args).y0 as Float32Array;
  }),
);
const set = devices()
  .find(({ name }) => name === 'cpu')
  ?.description.split(', ')
  .at(-1);
console.log(JSON.stringify({ set, parts: parts.map((part) => Buffer.from(part.buffer).toString('base64')) }));
