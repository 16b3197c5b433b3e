import { AtMoeError } from '../errors.js';
import { Detokenizer } from '../text/detokenizer.js';
import type { Tokenizer } from '../text/tokenizer.js';
import type { WeightSpan } from './rows.js';

/** Half-open range of UTF-16 units of the completion. */
type Range = [start: number, end: number];

/** How far ahead a token's text is looked for where normalisation or an unknown character broke the correspondence. */
const RESYNC_UNITS = 64;

/**
 * Weight of every unit of a completion.
 * @throws AtMoeError ERR_AT_MOE_BAD_DATA for a span that leaves the completion or overlaps another.
 */
export function unitWeights(spans: readonly WeightSpan[], length: number, source: string): Float32Array {
  const weights = new Float32Array(length).fill(1);
  let end = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const text = `weight span ${span.start}..${span.end}`;
    if (span.end > length) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: ${text} ends after ${length}`);
    if (span.start < end) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: ${text} overlaps another`);
    weights.fill(span.weight, span.start, span.end);
    end = span.end;
  }
  return weights;
}

/**
 * Weight of every completion token: the weight that most of its characters have (of equals the earlier one). A token
 * that completes no character takes part in the next one that is completed.
 */
export function tokenWeights(
  tokenizer: Tokenizer,
  prompt: readonly number[],
  ids: readonly number[],
  completion: string,
  weights: Float32Array,
): Float32Array {
  const decoded = new Detokenizer(tokenizer, { prompt, skipSpecialTokens: false });
  const kept = (decoded.push(ids) + decoded.flush()).includes(completion);
  const [text, units] = kept ? [completion, weights] : compose(completion, weights);
  return Float32Array.from(tokenRanges(tokenizer, prompt, ids, text), (range) => majority(units, range));
}

/**
 * The text in normal form C, as some tokenizers see it; a composed character gets the weight most of its parts have.
 */
function compose(text: string, weights: Float32Array): [string, Float32Array] {
  let composed = '';
  const units: number[] = [];
  for (const { 0: character, index } of text.matchAll(/\P{M}\p{M}*|\p{M}+/gsu)) {
    const part = character.normalize('NFC');
    const unchanged = part.length === character.length;
    const weight = majority(weights, [index, index + character.length]);
    for (let i = 0; i < part.length; i++) units.push(unchanged ? (weights[index + i] as number) : weight);
    composed += part;
  }
  return [composed, Float32Array.from(units)];
}

/** The part of the completion that each token stands for; never empty as long as the completion is not. */
function tokenRanges(
  tokenizer: Tokenizer,
  prompt: readonly number[],
  ids: readonly number[],
  completion: string,
): Range[] {
  const detokenizer = new Detokenizer(tokenizer, { prompt, skipSpecialTokens: false });
  const ranges: Range[] = [];
  let position = 0;
  let open = 0;
  const close = (end: number, from: number): void => {
    for (; open < from; open++) ranges[open] = nonEmpty([position, end], completion.length);
  };
  for (const [i, id] of ids.entries()) {
    let piece = detokenizer.push(id);
    if (i === ids.length - 1) piece += detokenizer.flush();
    if (piece === '') continue;
    let start = completion.startsWith(piece, position) ? position : -1;
    if (start < 0 && position === 0 && piece.startsWith(' ') && completion.startsWith(piece.slice(1))) {
      // The space that the tokenizer itself writes at the start of a text.
      close(0, i);
      ranges[i] = nonEmpty([0, piece.length - 1], completion.length);
      position = piece.length - 1;
      open = i + 1;
      continue;
    }
    if (start < 0) {
      start = completion.slice(0, position + RESYNC_UNITS + piece.length).indexOf(piece, position);
      if (start < 0) continue;
      close(start, i);
    }
    const end = start + piece.length;
    for (; open <= i; open++) ranges[open] = [start, end];
    position = end;
  }
  close(completion.length, ids.length);
  return ranges;
}

function nonEmpty([start, end]: Range, length: number): Range {
  if (end > start) return [start, end];
  const from = Math.min(start, Math.max(0, length - 1));
  return [from, from + 1];
}

function majority(weights: Float32Array, [start, end]: Range): number {
  const counts = new Map<number, number>();
  let best = weights[start] ?? 1;
  for (let i = start; i < end; i++) {
    const weight = weights[i] as number;
    counts.set(weight, (counts.get(weight) ?? 0) + 1);
  }
  for (const [weight, count] of counts) if (count > (counts.get(best) ?? 0)) best = weight;
  return best;
}
