import type { Steps } from '../turns.js';
import type { ByteNode } from './alphabet.js';
import { type Deterministic, determine, Effort } from './automaton.js';
import type { Graph } from './graph.js';
import type { Alternative } from './regex.js';
import { addSpans } from './spans.js';

/**
 * Adds the JSON strings whose text all of these patterns match, from behind the opening quote to behind the closing one.
 * The automaton is deterministic, and where all that follows is free it is an ordinary string.
 * Error: RangeError for patterns that take too many states or too long, before anything is added.
 */
export function* addPatterns(
  graph: Graph,
  from: number,
  to: number,
  patterns: readonly Alternative[][],
  pointer: string,
): Steps<void> {
  const effort = new Effort(pointer);
  const automaton = yield* determine(patterns, effort);
  const live = liveStates(automaton);
  yield;
  if (!live[0]) return;
  const nodes = Int32Array.from(live, (isLive) => (isLive ? graph.node() : -1));
  graph.empty(from, nodes[0] as number);
  const characters = new Characters(graph, automaton, nodes);
  for (const [state, { text, free }] of automaton.ends.entries()) {
    const node = nodes[state] as number;
    if (node < 0) continue;
    if (free) graph.string(node, 0, -1, to);
    else {
      if (text) graph.edge(node, 0x22, 0x22, to);
      characters.add(state);
    }
    if (state % 64 === 63) yield;
  }
  yield* addSpans(graph, automaton, nodes);
}

/** States from which a text can end. */
function liveStates({ next, ends }: Deterministic): Uint8Array {
  const before: number[][] = next.map(() => []);
  for (const [state, targets] of next.entries()) {
    let last = -1;
    for (const target of targets.values()) {
      if (target !== last) (before[target] as number[]).push(state);
      last = target;
    }
  }
  const live = new Uint8Array(next.length);
  const open = [...ends.keys()].filter((state) => ends[state]?.text || ends[state]?.free);
  for (const state of open) live[state] = 1;
  for (let state = open.pop(); state !== undefined; state = open.pop()) {
    for (const one of before[state] as number[]) {
      if (live[one]) continue;
      live[one] = 1;
      open.push(one);
    }
  }
  return live;
}

/** The bytes of the characters that lead from state to state. */
class Characters {
  readonly #graph: Graph;
  readonly #automaton: Deterministic;
  readonly #nodes: Int32Array; // by state; -1: leads nowhere
  readonly #shared = new Map<string, number>(); // nodes inside characters, by where these lead

  constructor(graph: Graph, automaton: Deterministic, nodes: Int32Array) {
    this.#graph = graph;
    this.#automaton = automaton;
    this.#nodes = nodes;
  }

  /** Adds those from a state. */
  add(state: number): void {
    const { alphabet, next } = this.#automaton;
    const targets = new Int32Array(alphabet.classes.length).fill(-1);
    for (const [one, to] of next[state] as ReadonlyMap<number, number>) targets[one] = this.#nodes[to] as number;
    this.#addEdges(alphabet.root, targets, this.#nodes[state] as number);
  }

  #addEdges({ edges }: ByteNode, targets: Int32Array, from: number): void {
    let [low, high, to] = [0, -1, -1]; // of edges that are one
    for (const edge of edges) {
      const target = edge.to < 0 ? (targets[~edge.to] as number) : this.#nodeOf(edge.to, targets);
      if (target === to && edge.low === high + 1) high = edge.high;
      else {
        if (to >= 0) this.#graph.edge(from, low, high, to);
        [low, high, to] = [edge.low, edge.high, target];
      }
    }
    if (to >= 0) this.#graph.edge(from, low, high, to);
  }

  /** The node inside a character; -1 where no character goes on. */
  #nodeOf(index: number, targets: Int32Array): number {
    const inside = this.#automaton.alphabet.nodes[index] as ByteNode;
    let led = '';
    for (const one of inside.classes) if ((targets[one] as number) >= 0) led += ` ${one}>${targets[one]}`;
    if (led === '') return -1;
    const key = `${index}${led}`;
    const known = this.#shared.get(key);
    if (known !== undefined) return known;
    const node = this.#graph.node();
    this.#shared.set(key, node);
    this.#addEdges(inside, targets, node);
    return node;
  }
}
