import { limits } from './limits.js';
import { below, exceeds, refuse } from './schema-error.js';

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };
export type Schema = boolean | JsonObject;

export const typeNames = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const;
export type TypeName = (typeof typeNames)[number];

/** Keywords that say nothing about what is valid. */
const annotations = new Set([
  '$comment',
  '$defs',
  '$id',
  '$schema',
  'contentEncoding',
  'contentMediaType',
  'default',
  'definitions',
  'deprecated',
  'description',
  'examples',
  'readOnly',
  'title',
  'writeOnly',
]);

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
export const isSchema = (value: Json | undefined): value is Schema => typeof value === 'boolean' || isObject(value);

type Check = (value: Json) => string | undefined;

const schema: Check = (value) => (isSchema(value) ? undefined : 'a schema');
const schemas: Check = (value) =>
  Array.isArray(value) && value.length > 0 && value.every(isSchema) ? undefined : 'a list of schemas';
const schemaMap: Check = (value) =>
  isObject(value) && Object.values(value).every(isSchema) ? undefined : 'an object of schemas';
const finite: Check = (value) => (typeof value === 'number' ? undefined : 'a number');
const count: Check = (value) => (Number.isInteger(value) && (value as number) >= 0 ? undefined : 'a count');
const text: Check = (value) => (typeof value === 'string' ? undefined : 'a string');
const names: Check = (value) =>
  Array.isArray(value) && value.every((name) => typeof name === 'string') ? undefined : 'a list of names';
const isType = (value: Json): boolean => (typeNames as readonly Json[]).includes(value);
const types: Check = (value) =>
  isType(value) || (Array.isArray(value) && value.length > 0 && value.every(isType))
    ? undefined
    : `one or more of ${typeNames.join(', ')}`;

/** What is supported, each with the form of its value; `of`: the types it is about. */
export const keywords: Readonly<Record<string, { check: Check; of?: readonly TypeName[] }>> = {
  $ref: { check: text },
  allOf: { check: schemas },
  anyOf: { check: schemas },
  oneOf: { check: schemas },
  type: { check: types },
  enum: { check: (value) => (Array.isArray(value) && value.length > 0 ? undefined : 'a list of values') },
  const: { check: () => undefined },
  properties: { check: schemaMap, of: ['object'] },
  required: { check: names, of: ['object'] },
  additionalProperties: { check: schema, of: ['object'] },
  propertyNames: { check: schema, of: ['object'] },
  items: {
    check: (value) => (isSchema(value) ? undefined : 'a schema (a list of schemas is prefixItems)'),
    of: ['array'],
  },
  prefixItems: { check: schemas, of: ['array'] },
  minItems: { check: count, of: ['array'] },
  maxItems: { check: count, of: ['array'] },
  minLength: { check: count, of: ['string'] },
  maxLength: { check: count, of: ['string'] },
  pattern: { check: text, of: ['string'] },
  format: { check: text, of: ['string'] },
  minimum: { check: finite, of: ['number', 'integer'] },
  maximum: { check: finite, of: ['number', 'integer'] },
  exclusiveMinimum: { check: finite, of: ['number', 'integer'] },
  exclusiveMaximum: { check: finite, of: ['number', 'integer'] },
};

/** Keywords that ask for nothing when they have this value. */
const harmless: Readonly<Record<string, Json>> = {
  uniqueItems: false,
  minProperties: 0,
  minContains: 0,
  unevaluatedProperties: true,
  unevaluatedItems: true,
};

/** The keywords that constrain, checked. Errors: TypeError, RangeError naming the place. */
export function constraintsOf(of: JsonObject, pointer: string): JsonObject {
  const kept: [string, Json][] = [];
  for (const [name, value] of Object.entries(of)) {
    if (name === '$id' && pointer !== '#') refuse(pointer, 'an $id below the root is not supported');
    if (annotations.has(name) || (Object.hasOwn(harmless, name) && harmless[name] === value)) continue;
    const known = Object.hasOwn(keywords, name) ? keywords[name] : undefined;
    if (!known) refuse(below(pointer, name), `"${name}" is not supported`);
    const expected = known.check(value);
    if (expected) refuse(below(pointer, name), `"${name}" must be ${expected}`);
    kept.push([name, value]);
  }
  const found = Object.fromEntries(kept);
  for (const [name, most] of [
    ['minItems', limits.items],
    ['maxItems', limits.items],
    ['minLength', limits.length],
    ['maxLength', limits.length],
  ] as const) {
    if ((found[name] as number) > most) exceeds(below(pointer, name), `${found[name]} is more than ${most}`);
  }
  if (Array.isArray(found.prefixItems) && found.prefixItems.length > limits.items)
    exceeds(below(pointer, 'prefixItems'), `more than ${limits.items} items`);
  return found;
}
