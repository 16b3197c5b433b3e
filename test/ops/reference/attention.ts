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
