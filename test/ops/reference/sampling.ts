/** The candidates of a sampling row in double: [id, probability] after all filters, in descending order. */
export interface SamplingRow {
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  history?: Int32Array;
  banned?: Int32Array;
  /** Bit i % 32 of word i / 32 for token i. */
  allowed?: Int32Array;
}

export function penalised(logits: number[], row: SamplingRow): number[] {
  const seen = new Set(row.history ?? []);
  const banned = new Set(row.banned ?? []);
  const penalty = row.repetitionPenalty ?? 1;
  const forbidden = (id: number) =>
    banned.has(id) || (row.allowed && (((row.allowed[id >> 5] as number) >>> (id & 31)) & 1) === 0);
  return logits.map((l, id) => (forbidden(id) ? -Infinity : seen.has(id) ? (l < 0 ? l * penalty : l / penalty) : l));
}

export function candidates(logits: number[], row: SamplingRow): [id: number, probability: number][] {
  const scores = penalised(logits, row);
  const largest = Math.max(...scores);
  let kept = scores
    .map((s, id) => [id, Math.exp((s - largest) / row.temperature)] as [number, number])
    .filter(([id]) => scores[id] !== -Infinity)
    .sort((a, b) => scores[b[0]]! - scores[a[0]]! || a[0] - b[0]);
  if (row.topK) kept = kept.slice(0, row.topK);
  const rescale = () => {
    const total = kept.reduce((sum, [, p]) => sum + p, 0);
    kept = kept.map(([id, p]) => [id, p / total]);
  };
  rescale();
  if (row.topP !== undefined && row.topP < 1) {
    let before = 0;
    kept = kept.filter(([, p], rank) => {
      const keep = rank === 0 || before < row.topP!;
      before += p;
      return keep;
    });
    rescale();
  }
  if (row.minP) kept = kept.filter(([, p]) => p >= row.minP! * kept[0]![1]);
  rescale();
  return kept;
}
