import { isDeepStrictEqual } from 'node:util';
import { isObject, type Json, type JsonObject, type Schema, type TypeName } from './keywords.js';
import { below, refuse } from './schema-error.js';

/** One that asks for both. */
export function both(a: Schema, b: Schema): Schema {
  if (a === false || b === false) return false;
  if (a === true) return b;
  if (b === true) return a;
  const parts = [a, b].flatMap((part) =>
    Array.isArray(part.allOf) && Object.keys(part).length === 1 ? part.allOf : [part],
  );
  const texts = new Map(parts.map((part) => [JSON.stringify(part), part]));
  return texts.size === 1 ? (parts[0] as Schema) : { allOf: [...texts.values()] };
}

const asList = (value: Json): Json[] => (Array.isArray(value) ? value : [value]);

/** Types that both allow; an integer is a number. */
function commonTypes(a: Json, b: Json): TypeName[] {
  const [left, right] = [asList(a), asList(b)] as [TypeName[], TypeName[]];
  const allows = (types: TypeName[], type: TypeName) =>
    types.includes(type) || (type === 'integer' && types.includes('number'));
  return [...new Set([...left.filter((type) => allows(right, type)), ...right.filter((type) => allows(left, type))])];
}

const schemaKeywords = new Set(['items', 'additionalProperties', 'propertyNames']);
const sorted = (_: string, part: Json): Json =>
  isObject(part) ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1))) : part;

/** JSON whose members are in the order of their names: equal values have the same. */
const canonical = (value: Json): string => JSON.stringify(value, typeof value === 'object' ? sorted : undefined);

function commonValues(a: Json[], b: Json[]): Json[] {
  const others = new Set(b.map(canonical));
  return a.filter((value) => others.has(canonical(value)));
}

const smaller = new Set(['maximum', 'exclusiveMaximum', 'maxItems', 'maxLength']);
const larger = new Set(['minimum', 'exclusiveMinimum', 'minItems', 'minLength']);

/** Properties that only one side names are what the other side calls additional. */
function mergedProperties(a: JsonObject, b: JsonObject): JsonObject {
  const [left, right] = [a, b].map(({ properties }) => (properties ?? {}) as Record<string, Schema>) as [
    Record<string, Schema>,
    Record<string, Schema>,
  ];
  const of = (side: JsonObject, own: Record<string, Schema>, name: string): Schema =>
    Object.hasOwn(own, name) ? (own[name] as Schema) : ((side.additionalProperties ?? true) as Schema);
  const allNames = [...new Set([...Object.keys(left), ...Object.keys(right)])];
  return Object.fromEntries(allNames.map((name) => [name, both(of(a, left, name), of(b, right, name))]));
}

/**
 * The constraints of two schemas in one, without $ref, allOf, anyOf and oneOf; several patterns are a list. Undefined
 * when no value meets both.
 * Error: TypeError for two values of a keyword that cannot be put into one.
 */
export function merge(a: JsonObject, b: JsonObject, pointer: string): JsonObject | undefined {
  const merged: JsonObject = { ...a };
  for (const [name, value] of Object.entries(b)) {
    const own = a[name];
    if (own === undefined) merged[name] = value;
    else if (name === 'type') merged.type = commonTypes(own, value);
    else if (name === 'enum') merged.enum = commonValues(asList(own), asList(value));
    else if (name === 'required') merged.required = [...new Set([...asList(own), ...asList(value)])];
    else if (name === 'pattern') merged.pattern = [...new Set([...asList(own), ...asList(value)])];
    else if (schemaKeywords.has(name)) merged[name] = both(own as Schema, value as Schema);
    else if (smaller.has(name)) merged[name] = Math.min(own as number, value as number);
    else if (larger.has(name)) merged[name] = Math.max(own as number, value as number);
    else if (name !== 'properties' && !isDeepStrictEqual(own, value))
      refuse(below(pointer, name), `two different values of "${name}" hold at once, which is not supported`);
  }
  if (isObject(a.properties) || isObject(b.properties)) merged.properties = mergedProperties(a, b);
  const clash = (x: JsonObject, y: JsonObject) => x.prefixItems && !y.prefixItems && y.items !== undefined;
  if (clash(a, b) || clash(b, a))
    refuse(pointer, '"prefixItems" and another "items" hold at once, which is not supported');
  const none = [merged.type, merged.enum].some((list) => Array.isArray(list) && list.length === 0);
  return none ? undefined : merged;
}
