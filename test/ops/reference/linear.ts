/** The fused linear group in double, adapters applied expert column by expert column. */
import type { Matrix } from '../../helpers/ops.js';

export interface Stack {
  a: Matrix;
  gateColumn: Int32Array;
  scale: Float32Array;
  modules: { b?: Matrix; first: number }[];
}

export interface Group {
  x: Matrix;
  shrinkX?: Matrix;
  modules: { weight: Matrix; bias?: Float32Array }[];
  stacks: Stack[];
  segments: { begin: number; end: number; stack: number }[];
  routing: Matrix;
  residual?: Matrix;
}

/** y of every module; rows that no segment covers are base only. */
export function linear(group: Group): Float64Array[] {
  const { x, routing } = group;
  const seen = group.shrinkX ?? x;
  const stackOf = (n: number) => group.stacks[group.segments.find((s) => s.begin <= n && n < s.end)?.stack ?? -1];
  return group.modules.map(({ weight, bias }, m) => {
    const y = new Float64Array(x.rows * weight.rows);
    for (let n = 0; n < x.rows; ++n) {
      const stack = stackOf(n);
      const own = stack?.modules[m];
      const gated = Array.from({ length: own?.b?.cols ?? 0 }, (_, j) => {
        const column = own!.first + j;
        let h = 0;
        for (let i = 0; i < x.cols; ++i) h += seen.data[n * x.cols + i]! * stack!.a.data[column * x.cols + i]!;
        return h * routing.data[n * routing.cols + stack!.gateColumn[column]!]! * stack!.scale[column]!;
      });
      for (let o = 0; o < weight.rows; ++o) {
        let sum = (bias?.[o] ?? 0) + (group.residual?.data[n * weight.rows + o] ?? 0);
        for (let i = 0; i < x.cols; ++i) sum += weight.data[o * x.cols + i]! * x.data[n * x.cols + i]!;
        for (let j = 0; j < gated.length; ++j) sum += own!.b!.data[o * own!.b!.cols + j]! * gated[j]!;
        y[n * weight.rows + o] = sum;
      }
    }
    return y;
  });
}
