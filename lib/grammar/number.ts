import type { Graph } from './graph.js';
import { refuse } from './schema-error.js';

/** Digits that a double tells apart whatever they are; more would only be rounded. */
const digitsKept = 15;

/** Digits of a bound, zeros before the first other one included. */
const boundDigits = 20;

/** A bound of a number; open: the bound itself is outside. */
export interface Bound {
  value: number;
  open: boolean;
}

export interface NumberRange {
  integer: boolean;
  least?: Bound | undefined;
  most?: Bound | undefined;
}

/** A bound without its sign: the digits before and after the point. */
interface Magnitude {
  whole: string;
  fraction: string;
  open: boolean;
}

/**
 * Adds JSON numbers: up to 15 digits before the point, with a fraction and an exponent of two digits unless they are
 * integers. In a range, numbers have 15 digits, or as many as its bounds, and no exponent: bounds beyond are met by all of them.
 * Error: TypeError for a bound of more than 20 digits.
 */
export function addNumber(graph: Graph, from: number, to: number, range: NumberRange, pointer: string): void {
  const { integer, least, most } = range;
  if (!least && !most) {
    addAnyNumber(graph, from, to, integer);
    return;
  }
  const top = 10 ** digitsKept - 1;
  if ((least && least.value > top) || (most && most.value < -top))
    refuse(pointer, `a number of more than ${digitsKept} digits`);
  let low = least && least.value >= -top ? least : { value: -top, open: false };
  let high = most && most.value <= top ? most : { value: top, open: false };
  const digits = [low, high].map(({ value }) => decimalDigits(value).join('').length);
  if (Math.max(...digits) > boundDigits) refuse(pointer, `a bound of more than ${boundDigits} digits`);
  // Numbers of more digits than a double tells apart may round to an open bound, but never beyond the next double.
  if (!integer && Math.max(...digits) > digitsKept) {
    low = closed(low, 1);
    high = closed(high, -1);
  }
  const zero: Bound = { value: 0, open: false };
  if (high.value >= 0) {
    addMagnitudes(graph, from, to, low.value < 0 ? zero : low, high, integer);
  }
  if (low.value < 0) {
    const negative = graph.literal(from, '-');
    const nearest = high.value < 0 ? { ...high, value: -high.value } : { value: 0, open: true };
    addMagnitudes(graph, negative, to, nearest, { ...low, value: -low.value }, integer);
  }
}

function addDigits(graph: Graph, from: number, least: number, most: number, to: number): void {
  let at = from;
  for (let i = 1; i <= most; i++) {
    const next = graph.node();
    graph.edge(at, 0x30, 0x39, next);
    if (i >= least) graph.empty(next, to);
    at = next;
  }
  if (least === 0) graph.empty(from, to);
}

function addAnyNumber(graph: Graph, from: number, to: number, integer: boolean): void {
  const [first, rest, whole] = [graph.node(), graph.node(), graph.node()];
  graph.empty(from, first);
  graph.edge(from, 0x2d, 0x2d, first);
  graph.edge(first, 0x30, 0x30, whole);
  graph.edge(first, 0x31, 0x39, rest);
  addDigits(graph, rest, 0, digitsKept - 1, whole);
  graph.empty(whole, to);
  if (integer) return;
  const fraction = graph.node();
  addDigits(graph, graph.literal(whole, '.'), 1, digitsKept, fraction);
  graph.empty(fraction, to);
  const [letter, digits] = [graph.node(), graph.node()];
  for (const before of [whole, fraction]) for (const e of [0x45, 0x65]) graph.edge(before, e, e, letter);
  graph.empty(letter, digits);
  for (const sign of [0x2b, 0x2d]) graph.edge(letter, sign, sign, digits);
  addDigits(graph, digits, 1, 2, to);
}

/** The digits of a number's magnitude before and after its point. */
function decimalDigits(value: number): [whole: string, fraction: string] {
  const [digits = '', exponent = '0'] = String(Math.abs(value)).split('e');
  const [whole = '', fraction = ''] = digits.split('.');
  const shift = Number(exponent);
  if (shift >= 0) return [whole, fraction];
  return ['0', '0'.repeat(-shift - 1) + whole + fraction];
}

function magnitudeOf({ value, open }: Bound): Magnitude {
  const [whole, fraction] = decimalDigits(value);
  return { whole, fraction, open };
}

/** The bound from inside: an open one at the next double above (1) or below (-1). No decimal but zero rounds to zero. */
function closed(bound: Bound, way: 1 | -1): Bound {
  if (!bound.open || bound.value === 0) return bound;
  const bits = new BigInt64Array(new Float64Array([bound.value]).buffer);
  bits[0] = (bits[0] as bigint) + BigInt(Math.sign(bound.value) * way);
  return { value: new Float64Array(bits.buffer)[0] as number, open: false };
}

/** A bound without a fraction, for integers: the nearest one inside. */
function integerBound(bound: Bound, up: boolean): Bound {
  const inside = up ? Math.ceil(bound.value) : Math.floor(bound.value);
  const moved = bound.open && inside === bound.value ? inside + (up ? 1 : -1) : inside;
  return { value: moved, open: false };
}

function addMagnitudes(graph: Graph, from: number, to: number, least: Bound, most: Bound, integer: boolean): void {
  const low = integer ? integerBound(least, true) : least;
  const high = integer ? integerBound(most, false) : most;
  if (low.value > high.value) return;
  const [a, b] = [magnitudeOf(low), magnitudeOf(high)];
  for (let length = a.whole.length; length <= b.whole.length; length++) {
    const lower = length === a.whole.length ? a : undefined;
    const upper = length === b.whole.length ? b : undefined;
    new Decimals(graph, to, length, integer, lower, upper).add(from);
  }
}

/**
 * The decimals with `length` digits before the point that lie between two bounds of that length. While the digits equal
 * those of a bound they are held to it ("tight"); once they differ, any may follow.
 */
class Decimals {
  readonly #nodes = new Map<string, number>();
  readonly #most: number; // digits

  constructor(
    readonly graph: Graph,
    readonly to: number,
    readonly length: number,
    integer: boolean,
    readonly low: Magnitude | undefined,
    readonly high: Magnitude | undefined,
  ) {
    const bounds = [low, high].map((bound) => bound?.fraction.length ?? 0);
    this.#most = integer ? length : Math.max(digitsKept, ...bounds.map((digits) => length + digits));
  }

  add(from: number): void {
    this.graph.empty(from, this.#node(0, this.low !== undefined, this.high !== undefined));
  }

  /** The node behind `count` digits. */
  #node(count: number, lowTight: boolean, highTight: boolean): number {
    const key = `${count} ${lowTight} ${highTight}`;
    const known = this.#nodes.get(key);
    if (known !== undefined) return known;
    const node = this.graph.node();
    this.#nodes.set(key, node);
    if (count >= this.length && this.#mayEnd(count, lowTight, highTight)) this.graph.empty(node, this.to);
    if (count === this.#most) return node;
    const digits = count === this.length ? this.graph.literal(node, '.') : node;
    const first = lowTight ? this.#digit(this.low as Magnitude, count) : 0;
    const last = highTight ? this.#digit(this.high as Magnitude, count) : 9;
    for (let digit = first; digit <= last; digit++) {
      if (count === 0 && digit === 0 && this.length > 1) continue;
      const next = this.#node(count + 1, lowTight && digit === first, highTight && digit === last);
      this.graph.edge(digits, 0x30 + digit, 0x30 + digit, next);
    }
    return node;
  }

  #digit({ whole, fraction }: Magnitude, at: number): number {
    return Number((at < this.length ? whole[at] : fraction[at - this.length]) ?? 0);
  }

  /** Whether what has been read, which equals each tight bound so far, is inside when nothing follows. */
  #mayEnd(count: number, lowTight: boolean, highTight: boolean): boolean {
    const equals = (bound: Magnitude) => !/[1-9]/.test(bound.fraction.slice(count - this.length));
    if (lowTight && (!equals(this.low as Magnitude) || (this.low as Magnitude).open)) return false;
    return !(highTight && equals(this.high as Magnitude) && (this.high as Magnitude).open);
  }
}
