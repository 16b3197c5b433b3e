import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array;

export interface Matrix {
  rows: number;
  cols: number;
  data: Float32Array;
}

// biome-ignore lint/suspicious/noExplicitAny: one type for the outputs of all ops
type Outputs = Record<string, any>;
type Op = (device: string, args: object, threads?: number) => Outputs;

const nodeGypBuild = createRequire(import.meta.url)('node-gyp-build') as (folder: string) => {
  ops: Record<string, Op>;
};

/** Single native ops, one function per op: see native/addon/ops.h. */
export const ops = nodeGypBuild(fileURLToPath(new URL('../../..', import.meta.url))).ops as Record<string, Op>;

/** What holds the weights of a linear group. */
interface Weights {
  dtype?: string;
  modules?: Weights[];
  stacks?: Weights[];
}

const inBf16 = ({ modules, stacks, ...own }: Weights): Weights => ({
  dtype: 'bf16',
  ...own,
  ...(modules && { modules: modules.map(inBf16) }),
  ...(stacks && { stacks: stacks.map(inBf16) }),
});

/** Runs an op that must exist. On cpu/bf16: on the CPU, with weights in bf16 that do not say what they are stored in. */
export function run(op: string, device: string, args: object, threads?: number): Outputs {
  const found = ops[op];
  if (!found) throw new Error(`no op ${op}`);
  return device === 'cpu/bf16' ? found('cpu', inBf16(args), threads) : found(device, args, threads);
}
