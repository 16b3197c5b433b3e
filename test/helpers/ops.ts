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

const stored = (dtype: string, { modules, stacks, ...own }: Weights): Weights => ({
  dtype,
  ...own,
  ...(modules && { modules: modules.map((module) => stored(dtype, module)) }),
  ...(stacks && { stacks: stacks.map((stack) => stored(dtype, stack)) }),
});

/**
 * Runs an op that must exist. AT_MOE_TEST_WEIGHTS: what the CPU stores the weights of linear groups in that do not
 * say it themselves, instead of f32.
 */
export function run(op: string, device: string, args: object, threads?: number): Outputs {
  const found = ops[op];
  if (!found) throw new Error(`no op ${op}`);
  const dtype = device.startsWith('cpu') && process.env.AT_MOE_TEST_WEIGHTS;
  return found(device, dtype ? stored(dtype, args) : args, threads);
}
