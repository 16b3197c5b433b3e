import type { GrammarDescription } from '../native-types.js';
import { limits } from './limits.js';
import { exceeds } from './schema-error.js';

const encoder = new TextEncoder();

interface Rule {
  start: number;
  end: number;
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
    return { of: (value) => rows.subarray(first[value], first[value + 1]) };
  }
}

interface Index {
  /** The rows with a value, in their order. */
  of(value: number): Int32Array;
}

/** Rules under construction: nodes joined by ranges of bytes, by calls of rules and by steps without a byte. */
export class Graph {
  #nodes = 0;
  readonly #edges = new Rows(4); // from, low, high, target
  readonly #empty = new Rows(2); // from, target
  readonly #calls = new Rows(3); // from, rule, target
  readonly #strings = new Map<number, StringNode>();
  readonly #rules: Rule[] = [];

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
  literals(from: number, texts: Iterable<string>, to: number): void {
    const known = new Map<string, number>(); // nodes by where they come from
    for (const text of texts) {
      let at = from;
      for (const byte of encoder.encode(text)) {
        const key = `${at} ${byte}`;
        const next = known.get(key) ?? this.node();
        if (!known.has(key)) this.edge(at, byte, byte, next);
        known.set(key, next);
        at = next;
      }
      this.empty(at, to);
    }
  }

  /**
   * The finished grammar of texts that `root` reads, without what leads nowhere. Undefined when there is no such text.
   * `onLeftRecursion` is told of a rule that begins with itself.
   */
  finish(root: number, onLeftRecursion: (rule: number) => never): GrammarDescription | undefined {
    const start = this.rule();
    this.call(this.startOf(start), root, this.endOf(start));
    const live = this.#liveNodes();
    if (!live[this.startOf(start)]) return undefined;
    const rules = this.#orderedRules(live, onLeftRecursion);
    return this.#pack(live, [start, ...rules.filter((rule) => rule !== start)]);
  }

  /** Nodes from which their rule can end. */
  #liveNodes(): Uint8Array {
    const edges = this.#edges.by(3, this.#nodes);
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
    const reachCall = (call: number) => {
      const [from, rule, target] = [0, 1, 2].map((column) => this.#calls.at(call, column)) as [number, number, number];
      if (live[target] && live[this.startOf(rule)]) reach(from);
    };
    for (const { end } of this.#rules) reach(end);
    for (let node = open.pop(); node !== undefined; node = open.pop()) {
      for (const row of edges.of(node)) reach(this.#edges.at(row, 0));
      for (const row of empty.of(node)) reach(this.#empty.at(row, 0));
      for (const row of stringsTo.of(node)) reach(strings.at(row, 1));
      callsTo.of(node).forEach(reachCall);
      const rule = ruleAt.get(node);
      if (rule !== undefined) callsOf.of(rule).forEach(reachCall);
    }
    return live;
  }

  /** Rules such that each comes before those it may begin with. */
  #orderedRules(live: Uint8Array, onLeftRecursion: (rule: number) => never): number[] {
    const leftCalls = this.#leftCalls(live);
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
        for (const row of empty.of(node)) if (live[this.#empty.at(row, 1)]) seen.add(this.#empty.at(row, 1));
        for (const row of calls.of(node)) {
          const other = this.#calls.at(row, 1);
          if (live[this.#calls.at(row, 2)] && live[this.startOf(other)]) called.add(other);
        }
      }
      return [...called];
    };
  }

  #pack(live: Uint8Array, rules: number[]): GrammarDescription {
    const kept = rules.filter((rule) => live[this.startOf(rule)]);
    const ruleNumbers = new Map(kept.map((rule, number) => [rule, number]));
    const ends = new Set(kept.map((rule) => this.endOf(rule)));
    const numbers = new Int32Array(this.#nodes).fill(-1);
    let count = 0;
    for (let node = 0; node < this.#nodes; node++) if (live[node]) numbers[node] = count++;
    const number = (node: number) => numbers[node] as number;
    const edgesOf = this.#edges.by(0, this.#nodes);
    const emptyOf = this.#empty.by(0, this.#nodes);
    const callsOf = this.#calls.by(0, this.#nodes);
    const nodes: number[] = [];
    const edges: number[] = [];
    const empty: number[] = [];
    const calls: number[] = [];
    for (let node = 0; node < this.#nodes; node++) {
      if (!live[node]) continue;
      for (const row of edgesOf.of(node)) {
        const target = this.#edges.at(row, 3);
        if (live[target]) edges.push(this.#edges.at(row, 1), this.#edges.at(row, 2), number(target));
      }
      for (const row of emptyOf.of(node)) {
        if (live[this.#empty.at(row, 1)]) empty.push(number(this.#empty.at(row, 1)));
      }
      for (const row of callsOf.of(node)) {
        const called = ruleNumbers.get(this.#calls.at(row, 1));
        const target = this.#calls.at(row, 2);
        if (called !== undefined && live[target]) calls.push(called, number(target));
      }
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
    };
  }
}
