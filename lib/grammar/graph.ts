import type { GrammarDescription } from '../native-types.js';
import { limits } from './limits.js';
import { exceeds } from './schema-error.js';

const encoder = new TextEncoder();

interface Node {
  edges: [low: number, high: number, target: number][];
  empty: number[];
  calls: [rule: number, target: number][];
  string?: { least: number; most: number; target: number };
}

interface Rule {
  start: number;
  end: number;
}

/** Rules under construction: nodes joined by ranges of bytes, by calls of rules and by steps without a byte. */
export class Graph {
  readonly #nodes: Node[] = [];
  readonly #rules: Rule[] = [];

  node(): number {
    if (this.#nodes.length === limits.nodes) exceeds('#', `it compiles to more than ${limits.nodes} nodes`);
    return this.#nodes.push({ edges: [], empty: [], calls: [] }) - 1;
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
    this.#at(from).edges.push([low, high, to]);
  }

  empty(from: number, to: number): void {
    this.#at(from).empty.push(to);
  }

  call(from: number, rule: number, to: number): void {
    this.#at(from).calls.push([rule, to]);
  }

  /** The characters of a JSON string and its closing quote; `most` -1: any number. */
  string(from: number, least: number, most: number, to: number): void {
    const node = this.node();
    this.#at(node).string = { least, most, target: to };
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
    const children = new Map<number, Map<number, number>>();
    for (const text of texts) {
      let at = from;
      for (const byte of encoder.encode(text)) {
        let known = children.get(at);
        if (!known) children.set(at, (known = new Map()));
        let next = known.get(byte);
        if (next === undefined) {
          known.set(byte, (next = this.node()));
          this.edge(at, byte, byte, next);
        }
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

  #at(node: number): Node {
    return this.#nodes[node] as Node;
  }

  /** Nodes from which their rule can end. */
  #liveNodes(): Uint8Array {
    const before: number[][] = this.#nodes.map(() => []);
    const callsTo: [from: number, rule: number][][] = this.#nodes.map(() => []);
    const callsOf: [from: number, target: number][][] = this.#rules.map(() => []);
    for (const [from, { edges, empty, calls, string }] of this.#nodes.entries()) {
      for (const [, , target] of edges) before[target]?.push(from);
      for (const target of empty) before[target]?.push(from);
      if (string) before[string.target]?.push(from);
      for (const [rule, target] of calls) {
        callsTo[target]?.push([from, rule]);
        callsOf[rule]?.push([from, target]);
      }
    }
    const ruleAt = new Map(this.#rules.map(({ start }, rule) => [start, rule]));
    const live = new Uint8Array(this.#nodes.length);
    const open: number[] = [];
    const reach = (node: number) => {
      if (live[node]) return;
      live[node] = 1;
      open.push(node);
    };
    for (const { end } of this.#rules) reach(end);
    for (let node = open.pop(); node !== undefined; node = open.pop()) {
      for (const from of before[node] as number[]) reach(from);
      for (const [from, rule] of callsTo[node] as [number, number][]) if (live[this.startOf(rule)]) reach(from);
      const rule = ruleAt.get(node);
      for (const [from, target] of (rule !== undefined && callsOf[rule]) || []) if (live[target]) reach(from);
    }
    return live;
  }

  /** Rules such that each comes before those it may begin with. */
  #orderedRules(live: Uint8Array, onLeftRecursion: (rule: number) => never): number[] {
    const order: number[] = [];
    const state = new Uint8Array(this.#rules.length); // 1: on the path, 2: done
    for (const first of this.#rules.keys()) {
      if (state[first]) continue;
      state[first] = 1;
      const path = [{ rule: first, left: this.#leftCalls(first, live) }];
      for (let top = path.at(-1); top; top = path.at(-1)) {
        const next = top.left.pop();
        if (next === undefined) {
          state[top.rule] = 2;
          order.push(top.rule);
          path.pop();
        } else if (state[next] === 1) onLeftRecursion(next);
        else if (!state[next]) {
          state[next] = 1;
          path.push({ rule: next, left: this.#leftCalls(next, live) });
        }
      }
    }
    return order.reverse();
  }

  /** What a rule may call before its first byte. */
  #leftCalls(rule: number, live: Uint8Array): number[] {
    const seen = new Set([this.startOf(rule)]);
    const called = new Set<number>();
    for (const node of seen) {
      for (const target of this.#at(node).empty) if (live[target]) seen.add(target);
      for (const [other, target] of this.#at(node).calls) {
        if (live[target] && live[this.startOf(other)]) called.add(other);
      }
    }
    return [...called];
  }

  #pack(live: Uint8Array, rules: number[]): GrammarDescription {
    const kept = rules.filter((rule) => live[this.startOf(rule)]);
    const ruleNumber = new Map(kept.map((rule, number) => [rule, number]));
    const ends = new Set(kept.map((rule) => this.endOf(rule)));
    const numbers = new Int32Array(this.#nodes.length).fill(-1);
    let count = 0;
    for (const node of this.#nodes.keys()) if (live[node]) numbers[node] = count++;
    const number = (node: number) => numbers[node] as number;
    const nodes: number[] = [];
    const edges: number[] = [];
    const empty: number[] = [];
    const calls: number[] = [];
    for (const [index, node] of this.#nodes.entries()) {
      if (!live[index]) continue;
      for (const [low, high, target] of node.edges) if (live[target]) edges.push(low, high, number(target));
      for (const target of node.empty) if (live[target]) empty.push(number(target));
      for (const [rule, target] of node.calls) {
        const called = ruleNumber.get(rule);
        if (called !== undefined && live[target]) calls.push(called, number(target));
      }
      const { least, most, target } = node.string ?? { least: 0, most: -1, target: -1 };
      const kind = node.string ? 2 : ends.has(index) ? 1 : 0;
      nodes.push(edges.length / 3, empty.length, calls.length / 2, kind, least, most, node.string ? number(target) : -1);
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
