/** Random linear groups with adapters, for the tests of their ops. */
import type { Matrix } from '../helpers/ops.js';
import type { Group, Stack } from './reference/linear.js';
import { matrix, type Random } from './support.js';

export const gateColumns = 5;

/** Experts of the given ranks in each module; a rank of 0 leaves the expert out of that module. */
function stackOf(random: Random, cols: number, outputs: number[], ranks: number[][]): Stack {
  const columns: number[] = [];
  const modules = outputs.map((rows, m) => {
    const first = columns.length;
    columns.push(...ranks[m]!.flatMap((rank, e) => Array(rank).fill(e)));
    const width = columns.length - first;
    return width > 0 ? { b: random.matrix(rows, width, 0.5), first } : { first };
  });
  return {
    a: random.matrix(columns.length, cols, 0.5),
    gateColumn: Int32Array.from(columns),
    scale: Float32Array.from(columns, (e) => 0.5 + (e % gateColumns)),
    modules,
  };
}

export interface Shape {
  rows: number;
  cols: number;
  outputs: number[];
  ranks: number[][];
  segments?: [begin: number, end: number, stack: number][];
  bias?: boolean;
  /** Columns of the routing records; 5 unless given. */
  gates?: number;
}

export function groupOf(random: Random, shape: Shape): Group {
  return {
    x: random.matrix(shape.rows, shape.cols),
    modules: shape.outputs.map((rows) => ({
      weight: random.matrix(rows, shape.cols, 0.5),
      ...(shape.bias ? { bias: random.array(rows) } : {}),
    })),
    stacks: [
      stackOf(random, shape.cols, shape.outputs, shape.ranks),
      stackOf(random, shape.cols, shape.outputs, shape.ranks),
    ],
    segments: (shape.segments ?? [[0, shape.rows, 0]]).map(([begin, end, stack]) => ({ begin, end, stack })),
    routing: random.matrix(shape.rows, shape.gates ?? gateColumns),
  };
}

/** Rows [begin, end). */
export const slice = (m: Matrix, begin: number, end: number): Matrix =>
  matrix(end - begin, m.cols, m.data.slice(begin * m.cols, end * m.cols));
