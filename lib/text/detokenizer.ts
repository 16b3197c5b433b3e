import type { Tokenizer } from './tokenizer.js';

const REPLACEMENT = '\uFFFD';
/** Tokens kept as left context when the window slides; more than the bytes of any character. */
const CONTEXT = 5;
/** Tokens decoded together before the window slides. */
const WINDOW = 10;

export interface DetokenizerOptions {
  /** Ids before the first pushed one. The text pushed out is then decode(prompt + pushed) less decode(prompt). */
  prompt?: ArrayLike<number>;
  /** Leave special tokens out of the text; default true. */
  skipSpecialTokens?: boolean;
}

/**
 * Turns a stream of token ids into text. What push() returns never ends inside a character: an incomplete UTF-8
 * sequence waits for its remaining bytes or for flush(). All pieces together equal the decoded text of all ids. Each
 * push decodes a window of at most WINDOW tokens plus the pushed ones, whatever the length of the stream.
 */
export class Detokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecial: boolean;
  #window: number[] = [];
  /** Characters of decode(window) already handed out. */
  #emitted = 0;

  constructor(tokenizer: Tokenizer, options: DetokenizerOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecial = options.skipSpecialTokens ?? true;
    const prompt = options.prompt;
    if (prompt === undefined) return;
    for (let i = prompt.length - 1; i >= 0 && this.#window.length < CONTEXT; i--) {
      const id = prompt[i] as number;
      if (this.#isVisible(id)) this.#window.unshift(id);
    }
    this.#emitted = stableLength(this.#decode());
  }

  /** Takes one id or several in order; returns the text that became certain, possibly ''. */
  push(ids: number | Iterable<number>): string {
    for (const id of typeof ids === 'number' ? [ids] : ids) {
      if (this.#isVisible(id)) this.#window.push(id);
    }
    const text = this.#decode();
    const piece = this.#take(text, stableLength(text));
    if (this.#window.length > WINDOW) this.#slide(text);
    return piece;
  }

  /** The text held back at the end of the stream: U+FFFD for a character that stayed incomplete, else ''. */
  flush(): string {
    const text = this.#decode();
    return this.#take(text, text.length);
  }

  #isVisible(id: number): boolean {
    return this.#tokenizer.has(id) && !(this.#skipSpecial && this.#tokenizer.isSpecial(id));
  }

  #decode(): string {
    return this.#tokenizer.decode(this.#window, { skipSpecialTokens: this.#skipSpecial });
  }

  #take(text: string, end: number): string {
    if (end <= this.#emitted) return '';
    const piece = text.slice(this.#emitted, end);
    this.#emitted = end;
    return piece;
  }

  /**
   * Drops old tokens where the text of the rest is the end of the whole text, so that later differences stay the same.
   */
  #slide(text: string): void {
    const rest = this.#window.slice(-CONTEXT);
    const tail = this.#tokenizer.decode(rest, { skipSpecialTokens: this.#skipSpecial });
    const dropped = text.length - tail.length;
    if (tail.length === 0 || dropped > this.#emitted || !text.endsWith(tail)) return;
    this.#window = rest;
    this.#emitted -= dropped;
  }
}

/** Length of the text without a final U+FFFD, which may be a character whose bytes have not all come. */
function stableLength(text: string): number {
  return text.endsWith(REPLACEMENT) ? text.length - 1 : text.length;
}
