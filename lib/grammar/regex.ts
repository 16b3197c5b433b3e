import { complement, normalized, type Range } from './characters.js';
import { limits } from './limits.js';
import { exceeds, refuse } from './schema-error.js';

/** A regular expression over code points. */
export type Regex =
  | { kind: 'set'; ranges: Range[] }
  | { kind: 'sequence'; parts: Regex[] }
  | { kind: 'choice'; options: Regex[] }
  | { kind: 'repeat'; part: Regex; least: number; most: number };

/** One alternative of a pattern; without an anchor anything may stand there. */
export interface Alternative {
  fromStart: boolean;
  toEnd: boolean;
  body: Regex;
}

const newlines: Range[] = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];
const classes: Record<string, Range[]> = {
  d: [[0x30, 0x39]],
  w: [
    [0x30, 0x39],
    [0x41, 0x5a],
    [0x5f, 0x5f],
    [0x61, 0x7a],
  ],
  s: [
    [0x09, 0x0d],
    [0x20, 0x20],
    [0xa0, 0xa0],
    [0x1680, 0x1680],
    [0x2000, 0x200a],
    [0x2028, 0x2029],
    [0x202f, 0x202f],
    [0x205f, 0x205f],
    [0x3000, 0x3000],
    [0xfeff, 0xfeff],
  ],
};
const controls: Record<string, number> = { t: 9, n: 10, v: 11, f: 12, r: 13, '0': 0 };
const one = (point: number): Range[] => [[point, point]];

/**
 * Reads an ECMAScript pattern (flag u) of the regular kind: no look-around, back-references, word boundaries or \p; anchors
 * only at the ends of a whole alternative. Errors: TypeError, RangeError at `pointer`.
 */
export function parsePattern(pattern: string, pointer: string): Alternative[] {
  if (pattern.length > limits.pattern) exceeds(pointer, `a pattern of more than ${limits.pattern} characters`);
  try {
    new RegExp(pattern, 'u');
  } catch (error) {
    refuse(pointer, (error as Error).message);
  }
  return new Parser(pattern, pointer).alternatives();
}

class Parser {
  readonly #letters: string[];
  readonly #pointer: string;
  #at = 0;
  #depth = 0;

  constructor(pattern: string, pointer: string) {
    this.#letters = [...pattern];
    this.#pointer = pointer;
  }

  alternatives(): Alternative[] {
    const found: Alternative[] = [];
    do {
      const fromStart = this.#take('^');
      const body = this.#sequence();
      const toEnd = this.#take('$');
      if (this.#at < this.#letters.length && this.#peek() !== '|') this.#unsupported();
      found.push({ fromStart, toEnd, body });
    } while (this.#take('|'));
    return found;
  }

  #peek(): string | undefined {
    return this.#letters[this.#at];
  }

  #next(): string {
    return this.#letters[this.#at++] as string;
  }

  #take(text: string): boolean {
    if (
      !this.#letters
        .slice(this.#at, this.#at + text.length)
        .join('')
        .startsWith(text)
    )
      return false;
    this.#at += text.length;
    return true;
  }

  #unsupported(): never {
    const rest = this.#letters.slice(this.#at, this.#at + 4).join('');
    return refuse(this.#pointer, `${JSON.stringify(rest)} at ${this.#at} of the pattern is not supported`);
  }

  #choice(): Regex {
    const options: Regex[] = [];
    do options.push(this.#sequence());
    while (this.#take('|'));
    return { kind: 'choice', options };
  }

  #sequence(): Regex {
    const parts: Regex[] = [];
    for (let letter = this.#peek(); letter !== undefined && !'|)$'.includes(letter); letter = this.#peek()) {
      parts.push(this.#repeated(this.#atom()));
    }
    return { kind: 'sequence', parts };
  }

  #repeated(part: Regex): Regex {
    const [least, most] = this.#bounds();
    if (least === 1 && most === 1) return part;
    if (Math.max(least, most) > limits.repetitions && most !== Number.POSITIVE_INFINITY)
      exceeds(this.#pointer, `a repetition of more than ${limits.repetitions}`);
    if (least > limits.repetitions) exceeds(this.#pointer, `a repetition of more than ${limits.repetitions}`);
    this.#take('?'); // lazy or not, the texts are the same
    return { kind: 'repeat', part, least, most };
  }

  #bounds(): [least: number, most: number] {
    if (this.#take('*')) return [0, Number.POSITIVE_INFINITY];
    if (this.#take('+')) return [1, Number.POSITIVE_INFINITY];
    if (this.#take('?')) return [0, 1];
    if (!this.#take('{')) return [1, 1];
    let text = '';
    while (!this.#take('}')) text += this.#next();
    const [least, most] = text.split(',');
    return [Number(least), most === undefined ? Number(least) : most === '' ? Number.POSITIVE_INFINITY : Number(most)];
  }

  #atom(): Regex {
    if (this.#take('(')) return this.#group();
    if (this.#take('[')) return { kind: 'set', ranges: this.#class() };
    if (this.#take('.')) return { kind: 'set', ranges: complement(newlines) };
    if (this.#peek() === '^') this.#unsupported();
    if (this.#peek() === '\\') return { kind: 'set', ranges: this.#escape(false) };
    return { kind: 'set', ranges: one(this.#next().codePointAt(0) as number) };
  }

  #group(): Regex {
    if (++this.#depth > limits.groups) exceeds(this.#pointer, `groups inside more than ${limits.groups} others`);
    if (this.#peek() === '?' && !this.#take('?:')) {
      if (!this.#take('?<') || this.#peek() === '=' || this.#peek() === '!') this.#unsupported();
      while (this.#next() !== '>'); // the group's name
    }
    const body = this.#choice();
    if (!this.#take(')')) this.#unsupported();
    this.#depth--;
    return body;
  }

  #class(): Range[] {
    const negated = this.#take('^');
    const ranges: Range[] = [];
    while (!this.#take(']')) {
      const low = this.#classItem();
      const isRange = this.#peek() === '-' && this.#letters[this.#at + 1] !== ']';
      if (!isRange || low.length !== 1) {
        ranges.push(...low);
        continue;
      }
      this.#at++;
      const high = this.#classItem();
      ranges.push([(low[0] as Range)[0], (high[0] as Range)[1]]);
    }
    return negated ? complement(ranges) : normalized(ranges);
  }

  #classItem(): Range[] {
    return this.#peek() === '\\' ? this.#escape(true) : one(this.#next().codePointAt(0) as number);
  }

  #escape(inClass: boolean): Range[] {
    const start = this.#at;
    this.#at++;
    const letter = this.#next();
    const known = classes[letter.toLowerCase()];
    if (known) return letter === letter.toLowerCase() ? known : complement(known);
    if (letter in controls) return one(controls[letter] as number);
    if (letter === 'x') return one(this.#hex(2));
    if (letter === 'u') return one(this.#codePoint());
    if (letter === 'c') return one(this.#next().charCodeAt(0) % 32);
    if (inClass && letter === 'b') return one(8);
    if (/[a-zA-Z0-9]/.test(letter)) {
      this.#at = start;
      this.#unsupported();
    }
    return one(letter.codePointAt(0) as number);
  }

  #hex(digits: number): number {
    let text = '';
    for (let i = 0; i < digits; i++) text += this.#next();
    return Number.parseInt(text, 16);
  }

  #codePoint(): number {
    if (this.#take('{')) {
      let text = '';
      while (!this.#take('}')) text += this.#next();
      return Number.parseInt(text, 16);
    }
    const unit = this.#hex(4);
    if (unit < 0xd800 || unit > 0xdbff || !this.#take('\\u')) return unit;
    return 0x10000 + ((unit & 0x3ff) << 10) + (this.#hex(4) & 0x3ff);
  }
}

/** Anything, newlines too. */
export const anything: Regex = {
  kind: 'repeat',
  part: { kind: 'set', ranges: complement([]) },
  least: 0,
  most: Number.POSITIVE_INFINITY,
};
