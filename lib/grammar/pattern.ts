import { type ByteRanges, jsonBytes, type Range } from './characters.js';
import type { Graph } from './graph.js';
import { limits } from './limits.js';
import { type Alternative, anything, type Regex } from './regex.js';
import { exceeds } from './schema-error.js';

/** Steps over states and edges; some tens of milliseconds. */
const mostWork = 1 << 19;

interface State {
  edges: [low: number, high: number, target: number][];
  empty: number[];
}

/** The texts of a pattern as a nondeterministic automaton over the bytes of a JSON string. */
class Automaton {
  readonly states: State[] = [];
  readonly #pointer: string;
  #work = 0;

  constructor(pointer: string) {
    this.#pointer = pointer;
  }

  /** Counts what was done: a small pattern may ask for more than there is time for. */
  spend(work: number): void {
    this.#work += work;
    if (this.#work > mostWork) tooLarge(this.#pointer);
  }

  state(): number {
    if (this.states.length === limits.patternStates) tooLarge(this.#pointer);
    return this.states.push({ edges: [], empty: [] }) - 1;
  }

  empty(from: number, to: number): void {
    (this.states[from] as State).empty.push(to);
  }

  add(regex: Regex, from: number): number {
    this.spend(1);
    if (regex.kind === 'set') return this.#set(regex.ranges, from);
    if (regex.kind === 'sequence') return regex.parts.reduce((at, part) => this.add(part, at), from);
    if (regex.kind === 'choice') {
      const to = this.state();
      for (const option of regex.options) this.empty(this.add(option, from), to);
      return to;
    }
    return this.#repeat(regex.part, regex.least, regex.most, from);
  }

  #set(ranges: Range[], from: number): number {
    const to = this.state();
    const before = new Map([['', to]]); // by the bytes that are still to come
    const reach = (rest: ByteRanges): number => {
      const key = rest.join(' ');
      const known = before.get(key);
      if (known !== undefined) return known;
      const at = this.state();
      before.set(key, at);
      (this.states[at] as State).edges.push([...(rest[0] as Range), reach(rest.slice(1))]);
      return at;
    };
    for (const [first, ...rest] of ranges.flatMap(jsonBytes)) {
      (this.states[from] as State).edges.push([...(first as Range), reach(rest)]);
    }
    return to;
  }

  #repeat(part: Regex, least: number, most: number, from: number): number {
    let at = from;
    for (let i = 0; i < least; i++) at = this.add(part, at);
    if (most === Number.POSITIVE_INFINITY) {
      const loop = this.state();
      this.empty(at, loop);
      this.empty(this.add(part, loop), loop);
      return loop;
    }
    const to = this.state();
    for (let i = least; i < most; i++) {
      this.empty(at, to);
      at = this.add(part, at);
    }
    this.empty(at, to);
    return to;
  }

  closure(of: Iterable<number>): number[] {
    const seen = new Set(of);
    for (const state of seen) for (const next of (this.states[state] as State).empty) seen.add(next);
    this.spend(seen.size);
    return [...seen].sort((a, b) => a - b);
  }
}

function tooLarge(pointer: string): never {
  return exceeds(pointer, `the pattern takes too many states, or too long to make deterministic`);
}

/** The ranges of bytes that lead to the same states. */
function transitions(automaton: Automaton, states: number[]): [low: number, high: number, targets: number[]][] {
  const edges = states.flatMap((state) => (automaton.states[state] as State).edges);
  const bounds = [...new Set(edges.flatMap(([low, high]) => [low, high + 1]))].sort((a, b) => a - b);
  automaton.spend(edges.length * bounds.length);
  const found: [number, number, number[]][] = [];
  for (const [i, low] of bounds.entries()) {
    const targets = edges.filter(([from, to]) => low >= from && low <= to).map(([, , target]) => target);
    if (targets.length > 0) found.push([low, (bounds[i + 1] as number) - 1, targets]);
  }
  return found;
}

/**
 * Adds the JSON strings whose text a pattern matches, from behind the opening quote to behind the closing one. The
 * automaton is deterministic, and where all that follows is free it is an ordinary string.
 * Error: RangeError for a pattern that takes too many states.
 */
export function addPattern(graph: Graph, from: number, to: number, alternatives: Alternative[], pointer: string): void {
  const automaton = new Automaton(pointer);
  const [start, ended, free] = [automaton.state(), automaton.state(), automaton.state()];
  for (const { fromStart, toEnd, body } of alternatives) {
    const first = fromStart ? start : automaton.add(anything, start);
    automaton.empty(automaton.add(body, first), toEnd ? ended : free);
  }
  const nodes = new Map<string, number>();
  const open: [node: number, states: number[]][] = [];
  const nodeOf = (states: number[]): number => {
    const key = states.join(' ');
    const known = nodes.get(key);
    if (known !== undefined) return known;
    const node = graph.node();
    nodes.set(key, node);
    if (states.includes(free)) graph.string(node, 0, -1, to);
    else open.push([node, states]);
    return node;
  };
  graph.empty(from, nodeOf(automaton.closure([start])));
  for (let next = open.pop(); next; next = open.pop()) {
    const [node, states] = next;
    if (states.includes(ended)) graph.edge(node, 0x22, 0x22, to);
    for (const [low, high, targets] of transitions(automaton, states)) {
      graph.edge(node, low, high, nodeOf(automaton.closure(targets)));
    }
  }
}
