import type { Steps } from '../turns.js';
import { Alphabet } from './alphabet.js';
import type { Range } from './characters.js';
import { limits } from './limits.js';
import { type Alternative, anything, type Regex } from './regex.js';
import { exceeds } from './schema-error.js';

/** Steps over states, classes and edges between two pauses: some tenths of a millisecond. */
const stepWork = 1 << 11;

/** Counts what is done for a pattern: a small one may ask for more than there is time for. */
export class Effort {
  readonly #pointer: string;
  #done = 0;
  #paused = 0;

  constructor(pointer: string) {
    this.#pointer = pointer;
  }

  spend(work: number): void {
    this.#done += work;
    if (this.#done > limits.patternWork) this.refuse();
  }

  refuse(): never {
    return exceeds(this.#pointer, 'the pattern takes too many states, or too long to make deterministic');
  }

  /** Pauses when enough was done since the last time. */
  *pause(): Steps<void> {
    if (this.#done - this.#paused < stepWork) return;
    this.#paused = this.#done;
    yield;
  }
}

function* setsOf(regex: Regex): Generator<readonly Range[]> {
  if (regex.kind === 'set') yield regex.ranges;
  else if (regex.kind === 'repeat') yield* setsOf(regex.part);
  else for (const part of regex.kind === 'sequence' ? regex.parts : regex.options) yield* setsOf(part);
}

/** The states whose numbers stand for the end of a text, and for where anything may follow. */
const [ended, free] = [0, 1];

interface State {
  edges: { classes: readonly number[]; target: number }[];
  empty: number[];
}

/** The texts of a pattern as a nondeterministic automaton over classes of characters. */
class Nondeterministic {
  /** Those of `ended` and `free` first. */
  readonly states: State[] = [ended, free].map(() => ({ edges: [], empty: [] }));
  readonly alphabet: Alphabet;
  readonly #effort: Effort;
  readonly #seen = new Int32Array(limits.patternStates); // by state: the last closure that has it
  #closures = 0;

  constructor(alphabet: Alphabet, effort: Effort) {
    this.alphabet = alphabet;
    this.#effort = effort;
  }

  state(): number {
    if (this.states.length === limits.patternStates) this.#effort.refuse();
    return this.states.push({ edges: [], empty: [] }) - 1;
  }

  at(state: number): State {
    return this.states[state] as State;
  }

  *add(regex: Regex, from: number): Steps<number> {
    this.#effort.spend(1);
    if (regex.kind === 'set') {
      const target = this.state();
      this.at(from).edges.push({ classes: this.alphabet.classesOf(regex.ranges), target });
      return target;
    }
    yield* this.#effort.pause();
    if (regex.kind === 'repeat') return yield* this.#repeat(regex, from);
    if (regex.kind === 'sequence') {
      let at = from;
      for (const part of regex.parts) at = yield* this.add(part, at);
      return at;
    }
    const to = this.state();
    for (const option of regex.options) this.at(yield* this.add(option, from)).empty.push(to);
    return to;
  }

  *#repeat({ part, least, most }: Regex & { kind: 'repeat' }, from: number): Steps<number> {
    let at = from;
    for (let i = 0; i < least; i++) at = yield* this.add(part, at);
    if (most === Number.POSITIVE_INFINITY) {
      const loop = this.state();
      this.at(at).empty.push(loop);
      this.at(yield* this.add(part, loop)).empty.push(loop);
      return loop;
    }
    const to = this.state();
    for (let i = least; i < most; i++) {
      this.at(at).empty.push(to);
      at = yield* this.add(part, at);
    }
    this.at(at).empty.push(to);
    return to;
  }

  /** Those of the states reached without a character that read one, `ended` and `free`; in ascending order. */
  closure(of: readonly number[]): number[] {
    const round = ++this.#closures;
    const open: number[] = [];
    const reach = (state: number) => {
      if (this.#seen[state] === round) return;
      this.#seen[state] = round;
      open.push(state);
    };
    const kept: number[] = [];
    of.forEach(reach);
    for (let state = open.pop(); state !== undefined; state = open.pop()) {
      this.#effort.spend(1);
      const { edges, empty } = this.at(state);
      if (state === ended || state === free || edges.length > 0) kept.push(state);
      empty.forEach(reach);
    }
    return kept.sort((a, b) => a - b);
  }
}

/** A deterministic automaton over classes of characters. */
export interface Deterministic {
  alphabet: Alphabet;
  /** By state, then class: the next state. The first state is the start. */
  next: ReadonlyMap<number, number>[];
  /** By state: whether a text may end there, and whether anything may follow, which `next` does not say. */
  ends: { text: boolean; free: boolean }[];
}

/** Numbers below 2^16 as a text. */
const asText = (numbers: readonly number[]): string => String.fromCharCode(...numbers);

/** One pattern, made deterministic as far as it is asked for. */
class Subsets {
  readonly #automaton: Nondeterministic;
  readonly #effort: Effort;
  readonly #members: number[][] = []; // by state
  readonly #byMembers = new Map<string, number>();
  readonly #byTargets = new Map<string, number>(); // by what leads there, without what follows of itself
  readonly #next: (ReadonlyMap<number, number> | undefined)[] = [];

  /** Its first state is that of `start`. */
  constructor(automaton: Nondeterministic, start: number, effort: Effort) {
    this.#automaton = automaton;
    this.#effort = effort;
    this.#stateOf([start]);
  }

  mayEnd(state: number): boolean {
    return this.#members[state]?.includes(ended) === true;
  }

  isFree(state: number): boolean {
    return this.#members[state]?.[0] === free;
  }

  /** By class, the next state; none where anything may follow. */
  next(state: number): ReadonlyMap<number, number> {
    const next = this.#next[state] ?? this.#transitions(state);
    this.#next[state] = next;
    return next;
  }

  #stateOf(targets: number[]): number {
    const text = asText(targets);
    const known = this.#byTargets.get(text);
    if (known !== undefined) return known;
    const closure = this.#automaton.closure(targets);
    // Where anything may follow, all else is of no account.
    const members = closure.includes(free) ? [free] : closure;
    const key = asText(members);
    const state = this.#byMembers.get(key) ?? this.#members.push(members) - 1;
    this.#byMembers.set(key, state);
    this.#byTargets.set(text, state);
    return state;
  }

  #transitions(state: number): ReadonlyMap<number, number> {
    const targets = new Map<number, number[]>(); // by class
    for (const member of this.#members[state] as number[]) {
      for (const { classes, target } of this.#automaton.at(member).edges) {
        this.#effort.spend(classes.length);
        for (const one of classes) {
          const known = targets.get(one);
          if (known) known.push(target);
          else targets.set(one, [target]);
        }
      }
    }
    const next = new Map<number, number>();
    for (const [one, own] of targets) next.set(one, this.#stateOf(own));
    return next;
  }
}

/** What all of these patterns match. Error: RangeError for patterns that take too many states or too long. */
export function* determine(patterns: readonly Alternative[][], effort: Effort): Steps<Deterministic> {
  const sets = patterns.flat().flatMap(({ body }) => [...setsOf(body)]);
  const automaton = new Nondeterministic(yield* Alphabet.of([...sets, ...setsOf(anything)]), effort);
  yield;
  const parts: Subsets[] = [];
  for (const alternatives of patterns) {
    const start = automaton.state();
    for (const { fromStart, toEnd, body } of alternatives) {
      const first = fromStart ? start : yield* automaton.add(anything, start);
      automaton.at(yield* automaton.add(body, first)).empty.push(toEnd ? ended : free);
    }
    parts.push(new Subsets(automaton, start, effort));
  }
  return yield* product(automaton.alphabet, parts, effort);
}

/** The states of several automata at once. */
function* product(alphabet: Alphabet, parts: readonly Subsets[], effort: Effort): Steps<Deterministic> {
  const found: Deterministic = { alphabet, next: [], ends: [] };
  const tuples: number[][] = []; // by state
  const known = new Map<string, number>();
  const stateOf = (tuple: number[], key: string): number => {
    const state = tuples.push(tuple) - 1;
    if (state === limits.patternStates) effort.refuse();
    known.set(key, state);
    return state;
  };
  const first = parts.map(() => 0);
  stateOf(first, asText(first));
  for (let state = 0; state < tuples.length; state++) {
    const tuple = tuples[state] as number[];
    const isFree = parts.map((part, i) => part.isFree(tuple[i] as number));
    const text = parts.every((part, i) => isFree[i] || part.mayEnd(tuple[i] as number));
    found.ends.push({ text, free: isFree.every(Boolean) });
    const next = new Map<number, number>();
    const bound = parts.findIndex((_, i) => !isFree[i]); // it says which characters may follow at most
    const after = parts.map((part, i) => part.next(tuple[i] as number)); // by part, then class
    for (const one of after[bound]?.keys() ?? []) {
      effort.spend(parts.length - 1);
      const reached = after.map((own, i) => (isFree[i] ? (tuple[i] as number) : (own.get(one) ?? -1)));
      if (reached.includes(-1)) continue;
      const key = asText(reached);
      next.set(one, known.get(key) ?? stateOf(reached, key));
    }
    found.next.push(next);
    yield* effort.pause();
  }
  return found;
}
