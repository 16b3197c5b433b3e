import type { Steps } from '../turns.js';
import { complement } from './characters.js';
import { formats, knownPatterns } from './formats.js';
import type { Graph } from './graph.js';
import type { JsonObject } from './keywords.js';
import { limits } from './limits.js';
import { addPatterns } from './pattern.js';
import { type Alternative, parsePattern } from './regex.js';
import { below, refuse } from './schema-error.js';

/** A length as a pattern. Error: TypeError for one that no repetition may have. */
function lengthPattern(least: number, most: number, pointer: string): Alternative[][] {
  if (least === 0 && most < 0) return [];
  if (Math.max(least, most) > limits.repetitions)
    refuse(pointer, `a length of more than ${limits.repetitions} beside "pattern" or "format" is not supported`);
  const part = { kind: 'set', ranges: complement([]) } as const;
  const body = { kind: 'repeat', part, least, most: most < 0 ? Number.POSITIVE_INFINITY : most } as const;
  return [[{ fromStart: true, toEnd: true, body }]];
}

/**
 * Adds the strings that meet the constraints on strings, from behind the opening quote to behind the closing one. A format
 * that is not known, or that takes too many states together with the patterns, is an annotation where there is a pattern.
 */
export function* addText(
  graph: Graph,
  from: number,
  to: number,
  constraints: JsonObject,
  pointer: string,
): Steps<void> {
  const { pattern, format: name, minLength, maxLength } = constraints;
  const [least, most] = [(minLength ?? 0) as number, (maxLength ?? -1) as number];
  if (most >= 0 && most < least) return;
  if (pattern === undefined && name === undefined) {
    graph.string(from, least, most, to);
    return;
  }
  const at = below(pointer, pattern === undefined ? 'format' : 'pattern');
  const known = typeof name === 'string' && Object.hasOwn(formats, name) ? formats[name] : undefined;
  if (pattern === undefined && known === undefined)
    refuse(at, `the format ${JSON.stringify(name)} is none of ${Object.keys(formats).join(', ')}`);
  const own = ((pattern === undefined ? [] : Array.isArray(pattern) ? pattern : [pattern]) as string[]).map((text) =>
    parsePattern(knownPatterns.get(text) ?? text, at),
  );
  const asked = [...own, ...lengthPattern(least, most, pointer)];
  const format = known === undefined ? [] : [parsePattern(known, at)];
  try {
    yield* addPatterns(graph, from, to, [...asked, ...format], at);
  } catch (error) {
    if (own.length === 0 || format.length === 0 || !(error instanceof RangeError)) throw error;
    yield* addPatterns(graph, from, to, asked, at);
  }
}
