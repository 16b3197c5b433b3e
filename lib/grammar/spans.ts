import type { Steps } from '../turns.js';
import type { Deterministic } from './automaton.js';
import { normalized, type Range } from './characters.js';
import type { Graph } from './graph.js';

/** Fewer characters do not make a walk over a vocabulary long. */
const fewest = 16;
/** Sets of characters of one pattern that spans are made of. */
const mostSets = 8;
/** Classes that are looked at for one pattern, those of all states; without spans masks are the same. */
const mostWork = 1 << 18;

interface Span {
  classes: number[];
  states: number[];
}

/**
 * Tells the graph from which states texts of certain characters go on, whichever these are, and up to which length: a
 * mask takes the tokens made of them as a whole. The characters are those after which at least the same may follow.
 */
export function* addSpans(graph: Graph, automaton: Deterministic, nodes: Int32Array): Steps<void> {
  const { alphabet, next } = automaton;
  const reader = new Reader(automaton, nodes);
  const spans = new Map<string, Span>(); // by their classes
  let work = 0;
  for (const state of next.keys()) {
    work += (next[state] as ReadonlyMap<number, number>).size ** 2;
    if (work > mostWork) return;
    const classes = reader.steadyClasses(state);
    const key = classes.join(' ');
    const span = spans.get(key) ?? { classes, states: [] };
    span.states.push(state);
    if (classes.length > 0) spans.set(key, span);
    if (state % 64 === 63) yield;
  }
  const broad = [...spans.values()].filter((span) => charactersOf(span, alphabet.classes) >= fewest);
  broad.sort((a, b) => b.states.length - a.states.length);
  for (const { classes, states } of broad.slice(0, mostSets)) {
    work += next.length * classes.length;
    if (work > mostWork) return;
    const lengths = reader.lengths(classes);
    const set = graph.characters(normalized(classes.flatMap((one) => alphabet.classes[one] as Range[])));
    for (const state of states) graph.span(nodes[state] as number, set, lengths[state] as number);
    yield;
  }
}

function charactersOf({ classes }: Span, all: readonly Range[][]): number {
  const ranges = classes.flatMap((one) => all[one] as Range[]);
  return ranges.reduce((count, [low, high]) => count + high - low + 1, 0);
}

/** Which characters an automaton reads, without the states that lead nowhere. */
class Reader {
  readonly #automaton: Deterministic;
  readonly #nodes: Int32Array;

  constructor(automaton: Deterministic, nodes: Int32Array) {
    this.#automaton = automaton;
    this.#nodes = nodes;
  }

  /** The state that a class leads to; -1 for none. */
  #after(state: number, one: number): number {
    const to = this.#automaton.next[state]?.get(one);
    return to !== undefined && (this.#nodes[to] as number) >= 0 ? to : -1;
  }

  #isFree(state: number): boolean {
    return this.#automaton.ends[state]?.free === true;
  }

  /** Classes after which at least the characters may follow that do now; none from where anything may. */
  steadyClasses(state: number): number[] {
    if ((this.#nodes[state] as number) < 0 || this.#isFree(state)) return [];
    const own = [...(this.#automaton.next[state] as ReadonlyMap<number, number>).keys()].filter(
      (one) => this.#after(state, one) >= 0,
    );
    own.sort((a, b) => a - b);
    const isSteady = new Map<number, boolean>(); // by the state after
    return own.filter((one) => {
      const to = this.#after(state, one);
      const known = isSteady.get(to);
      if (known !== undefined) return known;
      const steady = to === state || this.#isFree(to) || own.every((other) => this.#after(to, other) >= 0);
      isSteady.set(to, steady);
      return steady;
    });
  }

  /** By state: up to which length every text of these classes goes on; -1: any. */
  lengths(classes: readonly number[]): Int32Array {
    const { next } = this.#automaton;
    const lengths = new Int32Array(next.length).fill(-1);
    const before: number[][] = next.map(() => []);
    const open: number[] = []; // breadth first from where one of the classes ends the text
    for (const state of next.keys()) {
      if ((this.#nodes[state] as number) < 0 || this.#isFree(state)) continue;
      const after = new Set(classes.map((one) => this.#after(state, one)));
      if (after.has(-1)) {
        lengths[state] = 0;
        open.push(state);
      } else for (const to of after) (before[to] as number[]).push(state);
    }
    for (const state of open) {
      for (const one of before[state] as number[]) {
        if (lengths[one] !== -1) continue;
        lengths[one] = (lengths[state] as number) + 1;
        open.push(one);
      }
    }
    return lengths;
  }
}
