import type { GrammarDescription } from '../native-types.js';
import type { Steps } from '../turns.js';
import type { Range } from './characters.js';
import { limits } from './limits.js';
import { exceeds } from './schema-error.js';

const encoder = new TextEncoder();

/** Nodes, or bytes, between two pauses. */
const pause = 1 << 10;

interface Rule {
  start: number;
  end: number;
}

/** Texts of up to `most` characters of a set; -1: of any number. */
interface Span {
  set: number;
  most: number;
}

interface StringNode {
  least: number;
  most: number;
  target: number;
}

/** Rows of numbers, one after the other, found by the value of one column. */
class Rows {
  readonly #values: number[] = [];
  readonly #width: number;

  constructor(width: number) {
    this.#width = width;
  }

  get count(): number {
    return this.#values.length / this.#width;
  }

  add(...row: number[]): void {
    for (const value of row) this.#values.push(value);
  }

  at(row: number, column: number): number {
    return this.#values[row * this.#width + column] as number;
  }

  /** An index by a column whose values are below `bound`. */
  by(column: number, bound: number): Index {
    const first = new Int32Array(bound + 1);
    const count = (value: number, more: number) => {
      first[value] = (first[value] as number) + more;
    };
    for (let row = 0; row < this.count; row++) count(this.at(row, column) + 1, 1);
    for (let value = 0; value < bound; value++) count(value + 1, first[value] as number);
    const rows = new Int32Array(this.count);
    const next = first.slice();
    for (let row = 0; row < this.count; row++) {
      const value = this.at(row, column);
      rows[next[value] as number] = row;
      next[value] = (next[value] as number) + 1;
    }
    return new Index(first, rows);
  }
}

/** Rows by a value. */
class Index {
  readonly #first: Int32Array; // by value, the place of its first row
  readonly #rows: Int32Array;

  constructor(first: Int32Array, rows: Int32Array) {
    this.#first = first;
    this.#rows = rows;
  }

  /** The rows with a value, in their order. */
  each(value: number, use: (row: number) => void): void {
    const end = this.#first[value + 1] as number;
    for (let i = this.#first[value] as number; i < end; i++) use(this.#rows[i] as number);
  }
}

/** Rules under construction: nodes joined by ranges of bytes, by calls of rules and by steps without a byte. */
export class Graph {
  #nodes = 0;
  readonly #edges = new Rows(4); // from, low, high, target
  readonly #empty = new Rows(2); // from, target
  readonly #calls = new Rows(3); // from, rule, target
  readonly #strings = new Map<number, StringNode>();
  readonly #rules: Rule[] = [];
  readonly #sets = new Map<string, { number: number; ranges: readonly Range[] }>();
  readonly #spans = new Map<number, Span>(); // by node

  node(): number {
    if (this.#nodes === limits.nodes) exceeds('#', `it compiles to more than ${limits.nodes} nodes`);
    return this.#nodes++;
  }

  /** A new rule's number; what lies between its start and its end is still to come. */
  rule(): number {
    return this.#rules.push({ start: this.node(), end: this.node() }) - 1;
  }

  startOf(rule: number): number {
    return (this.#rules[rule] as Rule).start;
  }

  endOf(rule: number): number {
    return (this.#rules[rule] as Rule).end;
  }

  /** A byte of [low, high] leads from a node to another. */
  edge(from: number, low: number, high: number, to: number): void {
    this.#edges.add(from, low, high, to);
  }

  empty(from: number, to: number): void {
    this.#empty.add(from, to);
  }

  call(from: number, rule: number, to: number): void {
    this.#calls.add(from, rule, to);
  }

  /** The characters of a JSON string and its closing quote; `most` -1: any number. */
  string(from: number, least: number, most: number, to: number): void {
    const node = this.node();
    this.#strings.set(node, { least, most, target: to });
    this.empty(from, node);
  }

  /** A text's bytes, to a new node. */
  literal(from: number, text: string): number {
    let at = from;
    for (const byte of encoder.encode(text)) {
      const next = this.node();
      this.edge(at, byte, byte, next);
      at = next;
    }
    return at;
  }

  /** One of several texts; what they begin with alike is shared. */
  *literals(from: number, texts: Iterable<string>, to: number): Steps<void> {
    const known = new Map<number, number>(); // nodes by where they come from, and the byte
    let read = 0;
    for (const text of texts) {
      let at = from;
      const bytes = encoder.encode(text);
      for (const byte of bytes) {
        const key = 256 * at + byte;
        const next = known.get(key) ?? this.node();
        if (!known.has(key)) {
          this.edge(at, byte, byte, next);
          known.set(key, next);
        }
        at = next;
      }
      this.empty(at, to);
      read += bytes.length;
      if (read < pause) continue;
      read = 0;
      yield;
    }
  }

  /** The number of a set of characters, for spans; equal ones share one. Its ranges are in ascending order. */
  characters(ranges: readonly Range[]): number {
    const key = ranges.join(' ');
    const known = this.#sets.get(key) ?? { number: this.#sets.size, ranges };
    this.#sets.set(key, known);
    return known.number;
  }

  /** From a node of its own every text of up to `most` characters of a set goes on; -1: of any number. */
  span(node: number, set: number, most: number): void {
    this.#spans.set(node, { set, most });
  }

  /**
   * The finished grammar of texts that `root` reads, without what leads nowhere. Undefined when there is no such text.
   * `onLeftRecursion` is told of a rule that begins with itself.
   */
  *finish(root: number, onLeftRecursion: (rule: number) => never): Steps<GrammarDescription | undefined> {
    const start = this.rule();
    this.call(this.startOf(start), root, this.endOf(start));
    const live = yield* this.#liveNodes();
    if (!live[this.startOf(start)]) return undefined;
    const rules = yield* this.#orderedRules(live, onLeftRecursion);
    return yield* this.#pack(live, [start, ...rules.filter((rule) => rule !== start)]);
  }

  /** Nodes from which their rule can end. */
  *#liveNodes(): Steps<Uint8Array> {
    const edges = this.#edges.by(3, this.#nodes);
    yield;
    const empty = this.#empty.by(1, this.#nodes);
    const callsTo = this.#calls.by(2, this.#nodes);
    const callsOf = this.#calls.by(1, this.#rules.length);
    const strings = new Rows(2); // target, node
    for (const [node, { target }] of this.#strings) strings.add(target, node);
    const stringsTo = strings.by(0, this.#nodes);
    const ruleAt = new Map(this.#rules.map(({ start }, rule) => [start, rule]));
    const live = new Uint8Array(this.#nodes);
    const open: number[] = [];
    const reach = (node: number) => {
      if (live[node]) return;
      live[node] = 1;
      open.push(node);
    };
    const reachEdge = (edge: number) => reach(this.#edges.at(edge, 0));
    const reachCall = (call: number) => {
      const callee = this.startOf(this.#calls.at(call, 1));
      if (live[this.#calls.at(call, 2)] && live[callee]) reach(this.#calls.at(call, 0));
    };
    for (const { end } of this.#rules) reach(end);
    let done = 0;
    yield;
    for (let node = open.pop(); node !== undefined; node = open.pop()) {
      edges.each(node, reachEdge);
      empty.each(node, (row) => reach(this.#empty.at(row, 0)));
      stringsTo.each(node, (row) => reach(strings.at(row, 1)));
      callsTo.each(node, reachCall);
      const rule = ruleAt.get(node);
      if (rule !== undefined) callsOf.each(rule, reachCall);
      if (++done % pause === 0) yield;
    }
    return live;
  }

  /** Rules such that each comes before those it may begin with. */
  *#orderedRules(live: Uint8Array, onLeftRecursion: (rule: number) => never): Steps<number[]> {
    const leftCalls = this.#leftCalls(live);
    yield;
    const order: number[] = [];
    const state = new Uint8Array(this.#rules.length); // 1: on the path, 2: done
    for (const first of this.#rules.keys()) {
      if (state[first]) continue;
      state[first] = 1;
      const path = [{ rule: first, left: leftCalls(first) }];
      for (let top = path.at(-1); top; top = path.at(-1)) {
        const next = top.left.pop();
        if (next === undefined) {
          state[top.rule] = 2;
          order.push(top.rule);
          path.pop();
          if (order.length % 64 === 0) yield;
        } else if (state[next] === 1) onLeftRecursion(next);
        else if (!state[next]) {
          state[next] = 1;
          path.push({ rule: next, left: leftCalls(next) });
        }
      }
    }
    return order.reverse();
  }

  /** What a rule may call before its first byte. */
  #leftCalls(live: Uint8Array): (rule: number) => number[] {
    const empty = this.#empty.by(0, this.#nodes);
    const calls = this.#calls.by(0, this.#nodes);
    return (rule) => {
      const seen = new Set([this.startOf(rule)]);
      const called = new Set<number>();
      for (const node of seen) {
        empty.each(node, (row) => {
          if (live[this.#empty.at(row, 1)]) seen.add(this.#empty.at(row, 1));
        });
        calls.each(node, (row) => {
          const other = this.#calls.at(row, 1);
          if (live[this.#calls.at(row, 2)] && live[this.startOf(other)]) called.add(other);
        });
      }
      return [...called];
    };
  }

  *#pack(live: Uint8Array, rules: number[]): Steps<GrammarDescription> {
    const kept = rules.filter((rule) => live[this.startOf(rule)]);
    const ruleNumbers = new Map(kept.map((rule, number) => [rule, number]));
    const ends = new Set(kept.map((rule) => this.endOf(rule)));
    const numbers = new Int32Array(this.#nodes).fill(-1);
    let count = 0;
    for (let node = 0; node < this.#nodes; node++) if (live[node]) numbers[node] = count++;
    const number = (node: number) => numbers[node] as number;
    yield;
    const edgesOf = this.#edges.by(0, this.#nodes);
    yield;
    const emptyOf = this.#empty.by(0, this.#nodes);
    const callsOf = this.#calls.by(0, this.#nodes);
    const nodes: number[] = [];
    const edges: number[] = [];
    const empty: number[] = [];
    const calls: number[] = [];
    const spans: number[] = [];
    const keepEdge = (row: number) => {
      const target = this.#edges.at(row, 3);
      if (live[target]) edges.push(this.#edges.at(row, 1), this.#edges.at(row, 2), number(target));
    };
    const keepEmpty = (row: number) => {
      const target = this.#empty.at(row, 1);
      if (live[target]) empty.push(number(target));
    };
    const keepCall = (row: number) => {
      const called = ruleNumbers.get(this.#calls.at(row, 1));
      const target = this.#calls.at(row, 2);
      if (called !== undefined && live[target]) calls.push(called, number(target));
    };
    for (let node = 0; node < this.#nodes; node++) {
      if (node % pause === 0) yield;
      if (!live[node]) continue;
      edgesOf.each(node, keepEdge);
      emptyOf.each(node, keepEmpty);
      callsOf.each(node, keepCall);
      const span = this.#spans.get(node);
      if (span) spans.push(number(node), span.set, span.most);
      const string = this.#strings.get(node);
      nodes.push(edges.length / 3, empty.length, calls.length / 2);
      if (string) nodes.push(2, string.least, string.most, number(string.target));
      else nodes.push(ends.has(node) ? 1 : 0, 0, -1, -1);
    }
    return {
      nodes: Int32Array.from(nodes),
      edges: Int32Array.from(edges),
      empty: Int32Array.from(empty),
      calls: Int32Array.from(calls),
      rules: Int32Array.from(kept, (rule) => number(this.startOf(rule))),
      sets: Int32Array.from(
        [...this.#sets.values()].flatMap((set) => set.ranges.flatMap((range) => [set.number, ...range])),
      ),
      spans: Int32Array.from(spans),
    };
  }
}
