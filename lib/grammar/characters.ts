/** A range of code points, both included. */
export type Range = readonly [low: number, high: number];

/** A sequence of byte ranges: all bytes of a character, or of a range of characters. */
export type ByteRanges = Range[];

const shortEscapes = new Map([
  [0x08, 'b'],
  [0x09, 't'],
  [0x0a, 'n'],
  [0x0c, 'f'],
  [0x0d, 'r'],
  [0x22, '"'],
  [0x5c, '\\'],
]);

/** Control characters without a short escape, such that the last digits of their code points are a range of letters. */
const longEscapes: Range[] = [
  [0x00, 0x07],
  [0x0b, 0x0b],
  [0x0e, 0x0f],
  [0x10, 0x19],
  [0x1a, 0x1f],
];

/** Ranges in ascending order that do not touch, without surrogates, which no UTF-8 text has. */
export function normalized(ranges: readonly Range[]): Range[] {
  const merged: [number, number][] = [];
  const parts = ranges.flatMap(([low, high]): Range[] => [
    [low, Math.min(high, 0xd7ff)],
    [Math.max(low, 0xe000), high],
  ]);
  for (const [low, high] of parts.filter(([low, high]) => low <= high).sort((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high);
    else merged.push([low, high]);
  }
  return merged;
}

export function complement(ranges: readonly Range[]): Range[] {
  const gaps: Range[] = [];
  let next = 0;
  for (const [low, high] of normalized(ranges)) {
    if (low > next) gaps.push([next, low - 1]);
    next = high + 1;
  }
  return normalized([...gaps, [next, 0x10ffff]]);
}

/** How the characters of a range are written in a JSON string: as they are where they may be, else by their escapes. */
export function jsonBytes([low, high]: Range): ByteRanges[] {
  const sequences: ByteRanges[] = [];
  const asBytes = (text: string): ByteRanges => [...text].map((letter) => [letter.charCodeAt(0), letter.charCodeAt(0)]);
  for (const [point, letter] of shortEscapes) {
    if (point >= low && point <= high) sequences.push(asBytes(`\\${letter}`));
  }
  for (const [first, last] of longEscapes) {
    if (first > high || last < low) continue;
    const [from, to] = [Math.max(first, low), Math.min(last, high)];
    const hex = (digit: number) => digit.toString(16).charCodeAt(0);
    sequences.push([...asBytes(`\\u00${from >> 4}`), [hex(from & 15), hex(to & 15)]]);
  }
  let next = Math.max(low, 0x20);
  for (const point of [0x22, 0x5c, high + 1]) {
    const last = Math.min(point - 1, high);
    if (last >= next) sequences.push(...utf8Ranges(next, last));
    next = Math.max(next, point + 1);
  }
  return sequences;
}

/** The UTF-8 of a range without surrogates, as few sequences of byte ranges. */
function utf8Ranges(low: number, high: number): ByteRanges[] {
  for (const end of [0x7f, 0x7ff, 0xffff]) {
    if (low <= end && high > end) return [...utf8Ranges(low, end), ...utf8Ranges(end + 1, high)];
  }
  if (high <= 0x7f) return [[[low, high]]];
  // Aligned to whole blocks of continuation bytes, a range is a product of byte ranges.
  const continuations = high <= 0x7ff ? 1 : high <= 0xffff ? 2 : 3;
  for (let bits = 6; bits <= 6 * continuations; bits += 6) {
    const mask = (1 << bits) - 1;
    if ((low & ~mask) === (high & ~mask)) continue;
    if ((low & mask) !== 0) return [...utf8Ranges(low, low | mask), ...utf8Ranges((low | mask) + 1, high)];
    if ((high & mask) !== mask) return [...utf8Ranges(low, (high & ~mask) - 1), ...utf8Ranges(high & ~mask, high)];
  }
  const first = utf8(low);
  const last = utf8(high);
  return [first.map((byte, i): Range => [byte, last[i] as number])];
}

function utf8(point: number): number[] {
  const rest = (shift: number) => 0x80 | ((point >> shift) & 0x3f);
  if (point <= 0x7f) return [point];
  if (point <= 0x7ff) return [0xc0 | (point >> 6), rest(0)];
  if (point <= 0xffff) return [0xe0 | (point >> 12), rest(6), rest(0)];
  return [0xf0 | (point >> 18), rest(12), rest(6), rest(0)];
}
