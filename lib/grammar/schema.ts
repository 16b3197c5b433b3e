import type { GrammarDescription } from '../native-types.js';
import { runSteps, type Steps } from '../turns.js';
import { addArray, addObject, type Property } from './containers.js';
import { Graph } from './graph.js';
import {
  constraintsOf,
  isSchema,
  type Json,
  type JsonObject,
  keywords,
  type Schema,
  type TypeName,
  typeNames,
} from './keywords.js';
import { limits } from './limits.js';
import { merge } from './merge.js';
import { addNumber, type Bound } from './number.js';
import { below, exceeds, refuse } from './schema-error.js';
import { addText } from './text.js';

/** A schema, and where it stands in the document. */
interface Place {
  schema: Schema;
  pointer: string;
}

/** All names of properties there can be, or how to add them; neither where any name may be one. */
interface Keys {
  names?: ReadonlySet<string>;
  add?: (from: number, to: number) => Steps<void>;
}

/**
 * Compiles the texts of a schema's values. JSON is written compactly, with at most one space after ':' and ','; members
 * come in the order of `properties`, others after them. `strict`: where `properties` are named and `additionalProperties`
 * says nothing, there are no others.
 *
 * Errors, with the place in the schema: TypeError for what is malformed, not supported, or has no value at all;
 * RangeError beyond `limits`.
 */
export function schemaSteps(schema: Schema, strict: boolean): Steps<GrammarDescription> {
  return new Compiler(schema, strict).compile();
}

/** The same at once. */
export function compileSchema(schema: Schema, strict: boolean): GrammarDescription {
  return runSteps(schemaSteps(schema, strict));
}

class Compiler {
  readonly #graph = new Graph();
  readonly #document: Schema;
  readonly #strict: boolean;
  readonly #rules = new Map<string, number>(); // by the schema as JSON
  readonly #rulesOf = new Map<Schema, number>(); // by the schema itself
  readonly #places: Place[] = []; // by rule
  readonly #open: number[] = [];
  #merges = 0;

  constructor(document: Schema, strict: boolean) {
    this.#document = document;
    this.#strict = strict;
  }

  *compile(): Steps<GrammarDescription> {
    const root = this.#ruleOf({ schema: this.#document, pointer: '#' });
    for (let rule = this.#open.pop(); rule !== undefined; rule = this.#open.pop()) {
      yield* this.#fill(rule);
      yield;
    }
    const description = yield* this.#graph.finish(root, (rule) =>
      refuse(this.#places[rule]?.pointer ?? '#', 'it refers to itself without a value in between'),
    );
    return description ?? refuse('#', 'no JSON value of finite length meets it');
  }

  /** The rule of a schema; equal schemas share one. It is filled later, so that schemas may refer to themselves. */
  #ruleOf({ schema, pointer }: Place): number {
    const same = this.#rulesOf.get(schema);
    if (same !== undefined) return same;
    if (!isSchema(schema)) refuse(pointer, 'a schema is an object or a boolean');
    const text = JSON.stringify(schema);
    const known = this.#rules.get(text);
    if (known !== undefined) {
      this.#rulesOf.set(schema, known);
      return known;
    }
    if (this.#rules.size === limits.rules) exceeds(pointer, `there are more than ${limits.rules} different subschemas`);
    const rule = this.#graph.rule();
    this.#rules.set(text, rule);
    this.#rulesOf.set(schema, rule);
    this.#places[rule] = { schema, pointer };
    this.#open.push(rule);
    return rule;
  }

  *#fill(rule: number): Steps<void> {
    const { schema, pointer } = this.#places[rule] as Place;
    const [from, to] = [this.#graph.startOf(rule), this.#graph.endOf(rule)];
    if (schema === false) return;
    const references = schema === true ? undefined : this.#plainReferences(schema, pointer);
    for (const place of references ?? []) this.#graph.call(from, this.#ruleOf(place), to);
    if (references) return;
    const alternatives = yield* this.#expand({ schema, pointer }, []);
    for (const constraints of alternatives) {
      yield* this.#addTypes(from, to, constraints, pointer);
      yield;
    }
  }

  /** What a schema that is a $ref or a choice and nothing else leads to. */
  #plainReferences(schema: JsonObject, pointer: string): Place[] | undefined {
    const names = Object.keys(constraintsOf(schema, pointer));
    const [name] = names;
    if (names.length !== 1 || name === undefined || !['$ref', 'anyOf', 'oneOf'].includes(name)) return undefined;
    if (name === '$ref') return [this.#resolve(schema.$ref as string, pointer)];
    return (schema[name] as Schema[]).map((option, i) => ({ schema: option, pointer: below(pointer, name, i) }));
  }

  #resolve(reference: string, pointer: string): Place {
    const at = below(pointer, '$ref');
    if (reference !== '#' && !reference.startsWith('#/'))
      refuse(at, `${JSON.stringify(reference)} does not point into this schema ("#/…")`);
    let found: Json | undefined = this.#document;
    for (const part of reference.split('/').slice(1)) {
      let key: string;
      try {
        key = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');
      } catch {
        return refuse(at, `${JSON.stringify(reference)} is no JSON pointer`);
      }
      const holder: Json | undefined = found;
      found =
        typeof holder === 'object' && holder !== null && Object.hasOwn(holder, key)
          ? (holder as JsonObject)[key]
          : undefined;
    }
    if (!isSchema(found)) refuse(at, `there is no schema at ${JSON.stringify(reference)}`);
    return { schema: found, pointer: reference };
  }

  /** The schema as alternatives without $ref, allOf, anyOf and oneOf: those are merged into each. */
  *#expand({ schema, pointer }: Place, within: readonly Schema[]): Steps<JsonObject[]> {
    if (schema === false) return [];
    if (schema === true) return [{}];
    if (within.includes(schema)) refuse(pointer, 'it contains itself through allOf or $ref');
    if (++this.#merges > limits.merges) exceeds(pointer, `more than ${limits.merges} schemas are merged`);
    if (within.length > limits.depth) exceeds(pointer, `more than ${limits.depth} schemas are merged into one`);
    yield;
    const path = [...within, schema];
    const { $ref, allOf, anyOf, oneOf, const: constant, ...own } = constraintsOf(schema, pointer);
    let alternatives: JsonObject[] = [own];
    const combine = function* (others: JsonObject[]): Steps<void> {
      if (alternatives.length * others.length > limits.alternatives)
        exceeds(pointer, `it merges to more than ${limits.alternatives} alternatives`);
      const merged: JsonObject[] = [];
      for (const a of alternatives) {
        merged.push(...others.map((b) => merge(a, b, pointer)).filter((one) => one !== undefined));
        yield;
      }
      alternatives = merged;
    };
    if (constant !== undefined) yield* combine([{ enum: [constant] }]);
    if ($ref !== undefined) yield* combine(yield* this.#expand(this.#resolve($ref as string, pointer), path));
    const placesOf = (name: string, parts: Json | undefined): Place[] =>
      ((parts ?? []) as Schema[]).map((part, i) => ({ schema: part, pointer: below(pointer, name, i) }));
    for (const place of placesOf('allOf', allOf)) yield* combine(yield* this.#expand(place, path));
    if (anyOf) yield* combine(yield* this.#expandAll(placesOf('anyOf', anyOf), path));
    if (oneOf) yield* combine(yield* this.#expandAll(placesOf('oneOf', oneOf), path));
    return alternatives;
  }

  *#expandAll(places: readonly Place[], within: readonly Schema[]): Steps<JsonObject[]> {
    const found: JsonObject[] = [];
    for (const place of places) found.push(...(yield* this.#expand(place, within)));
    return found;
  }

  *#addTypes(from: number, to: number, constraints: JsonObject, pointer: string): Steps<void> {
    const types = typesOf(constraints);
    if (constraints.enum) yield* this.#addEnum(from, to, constraints, types, pointer);
    for (const type of constraints.enum ? [] : types) {
      if (type === 'null') yield* this.#graph.literals(from, ['null'], to);
      else if (type === 'boolean') yield* this.#graph.literals(from, ['true', 'false'], to);
      else if (type === 'string') yield* addText(this.#graph, this.#graph.literal(from, '"'), to, constraints, pointer);
      else if (type === 'object') yield* this.#addObject(from, to, constraints, pointer);
      else if (type === 'array') this.#addArray(from, to, constraints, pointer);
      else if (type === 'number' || !types.includes('number')) {
        const [least, most] = boundsOf(constraints);
        addNumber(this.#graph, from, to, { integer: type === 'integer', least, most }, pointer);
      }
    }
  }

  *#addEnum(
    from: number,
    to: number,
    constraints: JsonObject,
    types: readonly TypeName[],
    pointer: string,
  ): Steps<void> {
    const others = Object.keys(constraints).filter((name) => name !== 'enum' && name !== 'type');
    if (others.length > 0)
      refuse(below(pointer, others[0] as string), `"${others[0]}" beside "enum" or "const" is not supported`);
    const texts = new Set<string>();
    for (const [i, value] of (constraints.enum as Json[]).entries()) {
      if (i % 512 === 511) yield;
      if (!hasType(value, types)) continue;
      const text = JSON.stringify(value);
      if (/\\ud[89a-f]/.test(text)) refuse(pointer, 'a string of "enum" is not valid Unicode');
      texts.add(text);
    }
    yield* this.#graph.literals(from, texts, to);
  }

  *#addObject(from: number, to: number, constraints: JsonObject, pointer: string): Steps<void> {
    const named = Object.entries((constraints.properties ?? {}) as Record<string, Schema>);
    const closed = this.#strict && constraints.properties !== undefined;
    const others = (constraints.additionalProperties ?? !closed) as Schema;
    const required = new Set((constraints.required ?? []) as string[]);
    const keys = yield* this.#keysOf(constraints, pointer);
    const names = new Set(named.map(([name]) => name));
    const unnamed = new Set(
      [...required, ...((others !== false && keys.names) || [])].filter((name) => !names.has(name)),
    );
    const refused = [...required].find((name) => others === false && unnamed.has(name));
    if (refused !== undefined)
      refuse(below(pointer, 'required'), `${JSON.stringify(refused)} is required, but no property of the object`);
    const place = (name: string): string => below(pointer, 'properties', name);
    const rest: Place = { schema: others, pointer: below(pointer, 'additionalProperties') };
    const isKey = (name: string) => keys.names?.has(name) ?? true;
    const properties = [
      ...named.map(([name, schema]): [string, Place] => [name, { schema, pointer: place(name) }]),
      ...[...unnamed].map((name): [string, Place] => [name, rest]),
    ].map(([name, of]): Property => {
      const own = isKey(name) ? of : { schema: false, pointer: of.pointer };
      return { name, rule: this.#ruleOf(own), required: required.has(name) };
    });
    const lone = properties.find(({ name }) => /\p{Surrogate}/u.test(name));
    if (lone) refuse(place(lone.name), 'the name is not valid Unicode');
    if (keys.add && properties.length > 0)
      refuse(below(pointer, 'propertyNames'), '"propertyNames" beside named properties must be an "enum" of names');
    const hasOthers = others !== false && !keys.names;
    const more = hasOthers ? { rule: this.#ruleOf(rest), ...(keys.add && { addKeys: keys.add }) } : undefined;
    yield* addObject(this.#graph, from, to, properties, more);
  }

  /** What propertyNames says. */
  *#keysOf(constraints: JsonObject, pointer: string): Steps<Keys> {
    if (constraints.propertyNames === undefined) return {};
    const at = below(pointer, 'propertyNames');
    const schema = constraints.propertyNames as Schema;
    const options = (yield* this.#expand({ schema, pointer: at }, [])).filter((one) => typesOf(one).includes('string'));
    if (options.every((one) => one.enum)) {
      const values = options.flatMap(({ enum: own }) => own as Json[]);
      return { names: new Set(values.filter((value) => typeof value === 'string')) };
    }
    if (options.some((one) => one.enum)) refuse(at, '"enum" beside other keys is not supported');
    const isFree = (one: JsonObject) => Object.keys(one).every((name) => !keywords[name]?.of?.includes('string'));
    if (options.some(isFree)) return {};
    const graph = this.#graph;
    return {
      *add(from, to) {
        for (const one of options) yield* addText(graph, from, to, one, at);
      },
    };
  }

  #addArray(from: number, to: number, constraints: JsonObject, pointer: string): void {
    const prefix = (constraints.prefixItems ?? []) as Schema[];
    const items = (constraints.items ?? true) as Schema;
    const least = (constraints.minItems ?? 0) as number;
    const bounds = [constraints.maxItems as number | undefined, items === false ? prefix.length : undefined];
    const given = bounds.filter((bound) => bound !== undefined);
    const most = given.length > 0 ? Math.min(...given) : undefined;
    if (most !== undefined && least > most) return;
    const ruleOf = (index: number): number =>
      index < prefix.length
        ? this.#ruleOf({ schema: prefix[index] as Schema, pointer: below(pointer, 'prefixItems', index) })
        : this.#ruleOf({ schema: items, pointer: below(pointer, 'items') });
    addArray(this.#graph, from, to, ruleOf, prefix.length, least, most);
  }
}

/** The types of a schema; without "type" those that its keywords are about, else all. */
function typesOf(constraints: JsonObject): readonly TypeName[] {
  const { type } = constraints;
  if (type !== undefined) return (Array.isArray(type) ? type : [type]) as TypeName[];
  const meant = new Set(Object.keys(constraints).flatMap((name) => keywords[name]?.of ?? []));
  return meant.size > 0 ? typeNames.filter((name) => meant.has(name)) : typeNames;
}

function hasType(value: Json, types: readonly TypeName[]): boolean {
  if (value === null) return types.includes('null');
  if (Array.isArray(value)) return types.includes('array');
  if (typeof value !== 'number') return types.includes(typeof value as TypeName);
  return types.includes('number') || (types.includes('integer') && Number.isInteger(value));
}

/** The narrower of the inclusive and the exclusive bound. */
function boundsOf(constraints: JsonObject): [least: Bound | undefined, most: Bound | undefined] {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = constraints as Record<string, number | undefined>;
  const pick = (closed: number | undefined, open: number | undefined, isInside: (a: number, b: number) => boolean) => {
    if (open !== undefined && (closed === undefined || !isInside(closed, open))) return { value: open, open: true };
    return closed === undefined ? undefined : { value: closed, open: false };
  };
  return [pick(minimum, exclusiveMinimum, (a, b) => a > b), pick(maximum, exclusiveMaximum, (a, b) => a < b)];
}
