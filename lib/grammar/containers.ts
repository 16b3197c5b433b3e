import type { Steps } from '../turns.js';
import { normalized, type Range } from './characters.js';
import type { Graph } from './graph.js';

/** A member of an object, or the item of an array: the rule of its value. */
export interface Property {
  name: string;
  rule: number;
  required: boolean;
}

/** Adds the separator of members, which one space may follow. */
function addSeparator(graph: Graph, from: number, separator: string): number {
  const [to, spaced] = [graph.node(), graph.literal(from, separator)];
  graph.empty(spaced, to);
  graph.edge(spaced, 0x20, 0x20, to);
  return to;
}

/** Properties that are not named: the rule of their values, and their keys where not all are allowed. */
export interface Others {
  rule: number;
  /** Adds keys from behind the opening quote to behind the closing one. */
  addKeys?: (from: number, to: number) => Steps<void>;
}

/** Adds objects with these properties in this order, and then any number of others. */
export function* addObject(
  graph: Graph,
  from: number,
  to: number,
  properties: readonly Property[],
  others: Others | undefined,
): Steps<void> {
  // Nothing before the key, or a separator: at its own node each, up to which the object has been written.
  let first = graph.literal(from, '{');
  let separated = graph.node();
  let optionalFrom = properties.length;
  while (optionalFrom > 0 && !properties[optionalFrom - 1]?.required) optionalFrom--;
  for (const [index, { name, rule, required }] of properties.entries()) {
    const [key, written] = [graph.node(), graph.node()];
    const [nextFirst, nextSeparated] = [graph.node(), graph.node()];
    for (const [at, next] of [
      [first, nextFirst],
      [separated, nextSeparated],
    ] as const) {
      graph.empty(at, key);
      if (!required) graph.empty(at, next);
    }
    graph.call(addSeparator(graph, graph.literal(key, JSON.stringify(name)), ':'), rule, written);
    graph.empty(addSeparator(graph, written, ','), nextSeparated);
    if (index + 1 >= optionalFrom) graph.edge(written, 0x7d, 0x7d, to);
    [first, separated] = [nextFirst, nextSeparated];
    if (index % 64 === 63) yield;
  }
  graph.edge(first, 0x7d, 0x7d, to);
  if (!others) return;
  const [quote, written] = [graph.node(), graph.node()];
  graph.empty(first, quote);
  graph.empty(separated, quote);
  const key = graph.node();
  const letters = graph.literal(quote, '"');
  if (others.addKeys) yield* others.addKeys(letters, key);
  else addOtherKeys(graph, letters, key, new Set(properties.map(({ name }) => name)));
  graph.call(addSeparator(graph, key, ':'), others.rule, written);
  graph.empty(addSeparator(graph, written, ','), quote);
  graph.edge(written, 0x7d, 0x7d, to);
}

interface Letter {
  ends: boolean;
  next: Map<number, Letter>;
}

/**
 * Adds strings other than `names`, from behind the opening quote. Up to where a string differs from all names it has no
 * escapes, so that no name can be written in another way.
 */
function addOtherKeys(graph: Graph, from: number, to: number, names: ReadonlySet<string>): void {
  const root: Letter = { ends: false, next: new Map() };
  for (const name of names) {
    let at = root;
    for (const letter of name) {
      const point = letter.codePointAt(0) as number;
      const next = at.next.get(point) ?? { ends: false, next: new Map() };
      at.next.set(point, next);
      at = next;
    }
    at.ends = true;
  }
  const free = names.size === 0 ? from : graph.node();
  graph.string(free, 0, -1, to);
  if (names.size === 0) return;
  const leads = addLeadBytes(graph, free);
  const open: [node: number, letter: Letter][] = [[from, root]];
  for (let next = open.pop(); next; next = open.pop()) {
    const [node, letter] = next;
    if (!letter.ends) graph.edge(node, 0x22, 0x22, to);
    const followed = [...letter.next.keys()];
    for (const [low, high] of asciiBut([0x22, 0x5c, ...followed])) graph.edge(node, low, high, free);
    if (followed.every((point) => point < 0x80)) {
      for (const [low, high, target] of leads) graph.edge(node, low, high, target);
    }
    for (const [point, child] of letter.next) {
      if (point < 0x20 || point === 0x22 || point === 0x5c || (point >= 0xd800 && point <= 0xdfff)) continue;
      open.push([graph.literal(node, String.fromCodePoint(point)), child]);
    }
  }
}

/** Printable characters of one byte, and DEL, without some. */
function asciiBut(points: number[]): Range[] {
  const ranges: Range[] = [];
  let next = 0x20;
  for (const point of [...points].sort((a, b) => a - b)) {
    if (point < next) continue;
    if (point > next) ranges.push([next, Math.min(point - 1, 0x7f)]);
    next = point + 1;
  }
  return normalized([...ranges, [next, 0x7f]]);
}

/** The first bytes of longer UTF-8 characters, each with the node at which the rest is read, which ends at `to`. */
function addLeadBytes(graph: Graph, to: number): [low: number, high: number, target: number][] {
  const [one, two, three] = [graph.node(), graph.node(), graph.node()];
  graph.edge(one, 0x80, 0xbf, to);
  graph.edge(two, 0x80, 0xbf, one);
  graph.edge(three, 0x80, 0xbf, two);
  const narrow = (low: number, high: number, next: number): number => {
    const node = graph.node();
    graph.edge(node, low, high, next);
    return node;
  };
  return [
    [0xc2, 0xdf, one],
    [0xe0, 0xe0, narrow(0xa0, 0xbf, one)],
    [0xe1, 0xec, two],
    [0xed, 0xed, narrow(0x80, 0x9f, one)],
    [0xee, 0xef, two],
    [0xf0, 0xf0, narrow(0x90, 0xbf, two)],
    [0xf1, 0xf3, three],
    [0xf4, 0xf4, narrow(0x80, 0x8f, two)],
  ];
}

/** Adds arrays: `ruleOf` an index; from `prefix` on all indices have one rule. `most` undefined: any number. */
export function addArray(
  graph: Graph,
  from: number,
  to: number,
  ruleOf: (index: number) => number,
  prefix: number,
  least: number,
  most: number | undefined,
): void {
  let before = graph.literal(from, '[');
  if (least === 0) graph.edge(before, 0x5d, 0x5d, to);
  // The loop goes back to behind a separator, where the array cannot end.
  const unrolled = most ?? Math.max(least, prefix + 1, 2);
  for (let index = 0; index < unrolled; index++) {
    const after = graph.node();
    graph.call(before, ruleOf(index), after);
    if (index + 1 >= least) graph.edge(after, 0x5d, 0x5d, to);
    const loops = most === undefined && index + 1 === unrolled;
    if (index + 1 === unrolled && !loops) break;
    const next = addSeparator(graph, after, ',');
    if (loops) graph.empty(next, before);
    before = next;
  }
}
