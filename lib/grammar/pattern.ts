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

/** The states that each of several patterns may be in. Where `free` is among them, any text may follow: they are that alone. */
type States = readonly number[];

/** The ranges of bytes that lead to the same states in all patterns; a pattern that is free goes along with any. */
function transitions(automaton: Automaton, parts: readonly States[], free: number): [Range, number[][]][] {
  const edges = parts.map((states) => states.flatMap((state) => (automaton.states[state] as State).edges));
  const all = edges.flat();
  const bounds = [...new Set(all.flatMap(([low, high]) => [low, high + 1]))].sort((a, b) => a - b);
  automaton.spend(all.length * bounds.length);
  const found: [Range, number[][]][] = [];
  for (const [i, low] of bounds.entries()) {
    const targets = edges.map((own, part) =>
      parts[part]?.[0] === free
        ? [free]
        : own.filter(([from, to]) => low >= from && low <= to).map(([, , target]) => target),
    );
    if (targets.every((own) => own.length > 0)) found.push([[low, (bounds[i + 1] as number) - 1], targets]);
  }
  return found;
}

/** Of a deterministic automaton, whose first one is where it starts. */
interface Node {
  edges: [range: Range, target: number][];
  /** The text may end here; any may follow. */
  ends: boolean;
  free: boolean;
}

/** The automaton of what all patterns match. Error: RangeError for too many states. */
function determinized(patterns: readonly Alternative[][], pointer: string): Node[] {
  const automaton = new Automaton(pointer);
  const free = automaton.state();
  const made = patterns.map((alternatives) => {
    const [start, ended] = [automaton.state(), automaton.state()];
    for (const { fromStart, toEnd, body } of alternatives) {
      const first = fromStart ? start : automaton.add(anything, start);
      automaton.empty(automaton.add(body, first), toEnd ? ended : free);
    }
    return { start, ended };
  });
  const closure = (states: Iterable<number>): States => {
    const closed = automaton.closure(states);
    return closed.includes(free) ? [free] : closed;
  };
  const nodes: Node[] = [];
  const numbers = new Map<string, number>();
  const open: [node: Node, parts: States[]][] = [];
  const numberOf = (parts: States[]): number => {
    const key = parts.map((states) => states.join(' ')).join();
    const known = numbers.get(key);
    if (known !== undefined) return known;
    if (nodes.length === limits.patternStates) tooLarge(pointer);
    const ends = parts.every((states, i) => states[0] === free || states.includes(made[i]?.ended as number));
    const node: Node = { edges: [], ends, free: parts.every(([first]) => first === free) };
    numbers.set(key, nodes.push(node) - 1);
    if (!node.free) open.push([node, parts]);
    return nodes.length - 1;
  };
  numberOf(made.map(({ start }) => closure([start])));
  for (let next = open.pop(); next; next = open.pop()) {
    const [node, parts] = next;
    for (const [range, targets] of transitions(automaton, parts, free))
      node.edges.push([range, numberOf(targets.map(closure))]);
  }
  return nodes;
}

/**
 * Adds the JSON strings whose text all of these patterns match, from behind the opening quote to behind the closing one. The
 * automaton is deterministic, and where all that follows is free it is an ordinary string.
 * Error: RangeError for patterns that take too many states, before anything is added.
 */
export function addPatterns(
  graph: Graph,
  from: number,
  to: number,
  patterns: readonly Alternative[][],
  pointer: string,
): void {
  const found = determinized(patterns, pointer);
  const nodes = found.map(() => graph.node());
  graph.empty(from, nodes[0] as number);
  for (const [i, { edges, ends, free }] of found.entries()) {
    const node = nodes[i] as number;
    if (free) graph.string(node, 0, -1, to);
    else if (ends) graph.edge(node, 0x22, 0x22, to);
    for (const [[low, high], target] of edges) graph.edge(node, low, high, nodes[target] as number);
  }
}
