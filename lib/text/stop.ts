export interface StopResult {
  /** Text that is certain to lie before any stop string. */
  text: string;
  /** The stop string that ended the text; it and what follows are not in any `text`. */
  stop?: string;
}

/**
 * Looks for stop strings in text that comes in pieces. Text that could begin a stop string is held back until it is
 * decided. The stop string that is complete first wins; of several complete at the same character the longest. How the
 * text is cut never changes the result.
 */
export class StopMatcher {
  readonly #stops: string[];
  #held = '';
  #done = false;

  /** @throws TypeError if a stop is not a string, RangeError if it is empty. */
  constructor(stops: Iterable<string>) {
    this.#stops = [...stops];
    for (const stop of this.#stops) {
      if (typeof stop !== 'string') throw new TypeError('a stop string must be a string');
      if (stop.length === 0) throw new RangeError('a stop string must not be empty');
    }
  }

  /** Takes the next piece. After a result with `stop` every further push and flush returns ''. */
  push(piece: string): StopResult {
    if (this.#done) return { text: '' };
    const text = this.#held + piece;
    const match = this.#find(text);
    if (match) {
      this.#done = true;
      this.#held = '';
      return { text: text.slice(0, match.start), stop: match.stop };
    }
    const keep = this.#openLength(text);
    this.#held = text.slice(text.length - keep);
    return { text: text.slice(0, text.length - keep) };
  }

  /** The text still held back, at the end of the stream. */
  flush(): string {
    const text = this.#held;
    this.#held = '';
    return text;
  }

  #find(text: string): { start: number; stop: string } | undefined {
    let best: { start: number; stop: string } | undefined;
    let bestEnd = Number.POSITIVE_INFINITY;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      if (start < 0) continue;
      const end = start + stop.length;
      if (end < bestEnd || (end === bestEnd && best !== undefined && start < best.start)) {
        best = { start, stop };
        bestEnd = end;
      }
    }
    return best;
  }

  /** Length of the longest end of `text` that begins a stop string. */
  #openLength(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--) {
        if (text.endsWith(stop.slice(0, n))) longest = n;
      }
    }
    return longest;
  }
}
