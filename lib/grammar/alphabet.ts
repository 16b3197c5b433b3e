import type { Steps } from '../turns.js';
import { jsonBytes, type Range } from './characters.js';

/**
 * Where a byte of a character leads: to another node (its index), or to the end of a character of a class (~class).
 * Edges are in the order of their bytes and do not overlap.
 */
export interface ByteNode {
  edges: { low: number; high: number; to: number }[];
  /** Classes of the characters that end behind it. */
  classes: number[];
}

const keyOf = (ranges: readonly Range[]): string => ranges.join(' ');

/**
 * The characters that sets tell apart, in classes: a set has all characters of a class or none. And their bytes in a
 * JSON string as one deterministic tree, equal parts of which are one node.
 */
export class Alphabet {
  /** Ranges of each class, in ascending order. */
  readonly classes: Range[][];
  /** The last is the root. */
  readonly nodes: ByteNode[] = [];
  readonly #bySet: ReadonlyMap<string, number[]>;

  private constructor(classes: Range[][], bySet: ReadonlyMap<string, number[]>) {
    this.classes = classes;
    this.#bySet = bySet;
  }

  static *of(sets: Iterable<readonly Range[]>): Steps<Alphabet> {
    const distinct = new Map<string, readonly Range[]>();
    for (const set of sets) distinct.set(keyOf(set), set);
    const bounds = new Set<number>();
    for (const set of distinct.values()) for (const [low, high] of set) bounds.add(low).add(high + 1);
    const starts = Int32Array.from(bounds).sort();
    const at = new Map(Array.from(starts, (start, i) => [start, i]));
    const intervals = [...distinct.values()].map((set) => intervalsOf(set, at));
    yield;
    const classAt = refine(starts.length, intervals);
    const classesOf = (own: readonly number[]) => [...new Set(own.map((interval) => classAt[interval] as number))];
    const keys = [...distinct.keys()];
    const bySet = new Map(intervals.map((own, i) => [keys[i] as string, classesOf(own)]));
    const alphabet = new Alphabet(classRanges(starts, classAt), bySet);
    const tree = yield* bytesTree(alphabet.classes);
    yield;
    alphabet.#addNode(tree, new Map());
    return alphabet;
  }

  /** The classes of one of the sets. */
  classesOf(set: readonly Range[]): number[] {
    return this.#bySet.get(keyOf(set)) as number[];
  }

  get root(): ByteNode {
    return this.nodes.at(-1) as ByteNode;
  }

  #addNode(tree: Tree, known: Map<string, number>): number {
    const edges = [...tree.values()].map(({ low, high, to }) => ({
      low,
      high,
      to: typeof to === 'number' ? ~to : this.#addNode(to, known),
    }));
    edges.sort((a, b) => a.low - b.low);
    const key = edges.map(({ low, high, to }) => `${low} ${high} ${to}`).join(',');
    const same = known.get(key);
    if (same !== undefined) return same;
    const classes = edges.flatMap(({ to }) => (to < 0 ? [~to] : (this.nodes[to] as ByteNode).classes));
    const node = this.nodes.push({ edges, classes: [...new Set(classes)] }) - 1;
    known.set(key, node);
    return node;
  }
}

function intervalsOf(set: readonly Range[], at: ReadonlyMap<number, number>): number[] {
  return set.flatMap(([low, high]) => {
    const first = at.get(low) as number;
    return Array.from({ length: (at.get(high + 1) as number) - first }, (_, i) => first + i);
  });
}

/** The class of each interval: those that are in the same sets; -1 for none. */
function refine(count: number, sets: readonly number[][]): Int32Array {
  const classAt = new Int32Array(count).fill(-1);
  let next = 0;
  for (const set of sets) {
    const split = new Map<number, number>(); // classes by what they were before
    for (const interval of set) {
      const before = classAt[interval] as number;
      const after = split.get(before) ?? next++;
      split.set(before, after);
      classAt[interval] = after;
    }
  }
  const numbers = new Map<number, number>([[-1, -1]]);
  return classAt.map((one) => {
    if (!numbers.has(one)) numbers.set(one, numbers.size - 1);
    return numbers.get(one) as number;
  });
}

function classRanges(starts: Int32Array, classAt: Int32Array): Range[][] {
  const classes: [number, number][][] = [];
  for (const [i, one] of classAt.entries()) {
    if (one < 0) continue;
    classes[one] ??= [];
    const ranges = classes[one];
    const [low, high] = [starts[i] as number, (starts[i + 1] as number) - 1];
    const last = ranges.at(-1);
    if (last && last[1] + 1 === low) last[1] = high;
    else ranges.push([low, high]);
  }
  return classes;
}

/** By their range of bytes, what follows: more of them, or the class. */
type Tree = Map<number, { low: number; high: number; to: Tree | number }>;

/**
 * Byte ranges at one place are the same or disjoint: behind a range of more than one byte, all bytes that may follow do.
 */
function* bytesTree(classes: readonly Range[][]): Steps<Tree> {
  const root: Tree = new Map();
  for (const [one, ranges] of classes.entries()) {
    if (one % 32 === 31) yield;
    for (const bytes of ranges.flatMap(jsonBytes)) {
      let tree = root;
      for (const [i, [low, high]] of bytes.entries()) {
        const found = tree.get(low) ?? { low, high, to: i + 1 === bytes.length ? one : new Map() };
        tree.set(low, found);
        if (typeof found.to !== 'number') tree = found.to;
      }
    }
  }
  return root;
}
