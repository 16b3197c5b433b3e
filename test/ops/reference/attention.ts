/** Causal attention of one sequence in double: rows at ascending positions from 0, all keys present. */
export interface Heads {
  heads: number;
  kvHeads: number;
  headDim: number;
  window: number;
}

export function attention(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  rows: number,
  { heads, kvHeads, headDim, window }: Heads,
): { out: Float64Array; lse: Float64Array } {
  const out = new Float64Array(rows * heads * headDim);
  const lse = new Float64Array(rows * heads);
  for (let n = 0; n < rows; ++n) {
    const first = window > 0 ? Math.max(0, n - window + 1) : 0;
    for (let h = 0; h < heads; ++h) {
      const at = (n * heads + h) * headDim;
      const keyHead = Math.floor((h * kvHeads) / heads);
      const scores: number[] = [];
      for (let j = first; j <= n; ++j) {
        let score = 0;
        for (let i = 0; i < headDim; ++i) score += q[at + i]! * k[(j * kvHeads + keyHead) * headDim + i]!;
        scores.push(score / Math.sqrt(headDim));
      }
      const largest = Math.max(...scores);
      const total = scores.reduce((sum, s) => sum + Math.exp(s - largest), 0);
      lse[n * heads + h] = largest + Math.log(total);
      scores.forEach((score, index) => {
        const p = Math.exp(score - largest) / total;
        for (let i = 0; i < headDim; ++i) out[at + i]! += p * v[((first + index) * kvHeads + keyHead) * headDim + i]!;
      });
    }
  }
  return { out, lse };
}

/** Gradients of one such sequence, in double. */
export function attentionBackward(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  dout: ArrayLike<number>,
  rows: number,
  heads: Heads,
): { dq: Float64Array; dk: Float64Array; dv: Float64Array } {
  const { headDim, window } = heads;
  const scale = 1 / Math.sqrt(headDim);
  const { out, lse } = attention(q, k, v, rows, heads);
  const dq = new Float64Array(rows * heads.heads * headDim);
  const dk = new Float64Array(rows * heads.kvHeads * headDim);
  const dv = new Float64Array(rows * heads.kvHeads * headDim);
  const dotAt = (a: ArrayLike<number>, from: number, b: ArrayLike<number>, to: number) => {
    let sum = 0;
    for (let i = 0; i < headDim; ++i) sum += a[from + i]! * b[to + i]!;
    return sum;
  };
  for (let n = 0; n < rows; ++n) {
    for (let h = 0; h < heads.heads; ++h) {
      const at = (n * heads.heads + h) * headDim;
      const delta = dotAt(dout, at, out, at);
      for (let j = window > 0 ? Math.max(0, n - window + 1) : 0; j <= n; ++j) {
        const key = (j * heads.kvHeads + Math.floor((h * heads.kvHeads) / heads.heads)) * headDim;
        const p = Math.exp(dotAt(q, at, k, key) * scale - lse[n * heads.heads + h]!);
        const ds = p * (dotAt(dout, at, v, key) - delta) * scale;
        for (let i = 0; i < headDim; ++i) {
          dv[key + i]! += p * dout[at + i]!;
          dk[key + i]! += ds * q[at + i]!;
          dq[at + i]! += ds * k[key + i]!;
        }
      }
    }
  }
  return { dq, dk, dv };
}
