/** The fused linear group in double, adapters applied expert column by expert column. */
import type { Matrix } from '../../helpers/ops.js';

export interface Stack {
  a: Matrix;
  gateColumn: Int32Array;
  scale: Float32Array;
  modules: { b?: Matrix; first: number }[];
  selective?: boolean;
}

export interface Group {
  x: Matrix;
  shrinkX?: Matrix;
  /** What the modules' own weights read instead of x. */
  baseX?: Matrix;
  /** What B of each module reads instead of the gated h. */
  gated?: Matrix[];
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
  const read = group.baseX ?? x;
  const stackOf = (n: number) => group.stacks[group.segments.find((s) => s.begin <= n && n < s.end)?.stack ?? -1];
  return group.modules.map(({ weight, bias }, m) => {
    const y = new Float64Array(x.rows * weight.rows);
    for (let n = 0; n < x.rows; ++n) {
      const stack = stackOf(n);
      const own = stack?.modules[m];
      const gated = Array.from({ length: own?.b?.cols ?? 0 }, (_, j) => {
        if (group.gated) return group.gated[m]!.data[n * own!.b!.cols + j]!;
        const column = own!.first + j;
        let h = 0;
        for (let i = 0; i < x.cols; ++i) h += seen.data[n * x.cols + i]! * stack!.a.data[column * x.cols + i]!;
        return h * routing.data[n * routing.cols + stack!.gateColumn[column]!]! * stack!.scale[column]!;
      });
      for (let o = 0; o < weight.rows; ++o) {
        let sum = (bias?.[o] ?? 0) + (group.residual?.data[n * weight.rows + o] ?? 0);
        for (let i = 0; i < x.cols; ++i) sum += weight.data[o * x.cols + i]! * read.data[n * x.cols + i]!;
        for (let j = 0; j < gated.length; ++j) sum += own!.b!.data[o * own!.b!.cols + j]! * gated[j]!;
        y[n * weight.rows + o] = sum;
      }
    }
    return y;
  });
}

export interface Gradients {
  dx: Float64Array;
  drouting: Float64Array;
  dweight: Float64Array[];
  dbias: Float64Array[];
  da: Float64Array[];
  db: Float64Array[][];
}

/** The gradients of Σ dy ⊙ y without dropout, each from zero; a gate of 0 has none. */
export function linearGradients(group: Group, dy: Matrix[]): Gradients {
  const { x, routing, stacks, modules } = group;
  const out: Gradients = {
    dx: new Float64Array(x.rows * x.cols),
    drouting: new Float64Array(routing.rows * routing.cols),
    dweight: modules.map(({ weight }) => new Float64Array(weight.rows * x.cols)),
    dbias: modules.map(({ weight }) => new Float64Array(weight.rows)),
    da: stacks.map(({ a }) => new Float64Array(a.rows * a.cols)),
    db: stacks.map((stack) => stack.modules.map(({ b }) => new Float64Array(b ? b.rows * b.cols : 0))),
  };
  for (let n = 0; n < x.rows; ++n) {
    const s = group.segments.find(({ begin, end }) => begin <= n && n < end)?.stack ?? -1;
    const stack = stacks[s];
    const value = (i: number) => x.data[n * x.cols + i]!;
    modules.forEach(({ weight }, m) => {
      const g = (o: number) => dy[m]!.data[n * weight.rows + o]!;
      for (let o = 0; o < weight.rows; ++o) {
        out.dbias[m]![o]! += g(o);
        for (let i = 0; i < x.cols; ++i) {
          out.dx[n * x.cols + i]! += g(o) * weight.data[o * x.cols + i]!;
          out.dweight[m]![o * x.cols + i]! += g(o) * value(i);
        }
      }
      const { b, first } = stack?.modules[m] ?? { first: 0 };
      for (let j = 0; stack && b && j < b.cols; ++j) {
        const column = first + j;
        const gate = n * routing.cols + stack.gateColumn[column]!;
        const scale = stack.scale[column]!;
        let h = 0;
        let u = 0;
        for (let i = 0; i < x.cols; ++i) h += stack.a.data[column * x.cols + i]! * value(i);
        for (let o = 0; o < b.rows; ++o) {
          u += g(o) * b.data[o * b.cols + j]!;
          out.db[s]![m]![o * b.cols + j]! += g(o) * h * routing.data[gate]! * scale;
        }
        if (routing.data[gate] !== 0) out.drouting[gate]! += u * scale * h;
        const dh = u * scale * routing.data[gate]!;
        for (let i = 0; i < x.cols; ++i) {
          out.da[s]![column * x.cols + i]! += dh * value(i);
          out.dx[n * x.cols + i]! += dh * stack.a.data[column * x.cols + i]!;
        }
      }
    });
  }
  return out;
}
