import { AtMoeError } from './errors.js';
import { isSchema, type Schema } from './grammar/keywords.js';
import { limits } from './grammar/limits.js';
import { compileSchema } from './grammar/schema.js';
import { below, exceeds, refuse } from './grammar/schema-error.js';
import type { GrammarDescription, GrammarHandle, NativeEngine } from './native-types.js';
import { checkSpelling, tokenBytes } from './text/token-bytes.js';
import type { Tokenizer } from './text/tokenizer.js';

/** What an answer must be: free text, a JSON object, or a JSON value of a schema. */
export type ResponseFormat =
  | { type: 'text' }
  | { type: 'json_object' }
  | {
      type: 'json_schema';
      /** JSON Schema (2020-12) as an object or a boolean; docs/guide.md lists what is supported. */
      schema: object | boolean;
      /**
       * true (default): an object that names its `properties` and says nothing of `additionalProperties` has no others.
       * false: it may have, as JSON Schema has it.
       */
      strict?: boolean;
    };

/** A response format that has been compiled: it can be used again, with any model. */
export class CompiledResponseFormat {
  /** The format as JSON: formats of the same text are the same. */
  readonly text: string;
  /** Absent for free text. @internal */
  readonly grammar: GrammarDescription | undefined;

  /** @internal */
  constructor(text: string, grammar: GrammarDescription | undefined) {
    this.text = text;
    this.grammar = grammar;
  }
}

const formatKeys: Record<ResponseFormat['type'], readonly string[]> = {
  text: ['type'],
  json_object: ['type'],
  json_schema: ['type', 'schema', 'strict'],
};

/** The format as JSON, by which it is known. */
function canonicalText(format: ResponseFormat): string {
  if (typeof format !== 'object' || format === null) throw new TypeError('responseFormat must be an object');
  const keys = Object.hasOwn(formatKeys, format.type) ? formatKeys[format.type] : undefined;
  if (!keys) throw new TypeError(`responseFormat: type must be one of ${Object.keys(formatKeys).join(', ')}`);
  for (const [name, value] of Object.entries(format)) {
    if (value !== undefined && !keys.includes(name)) throw new TypeError(`responseFormat: ${name} is no option of it`);
  }
  if (format.type !== 'json_schema') return JSON.stringify({ type: format.type });
  const { type, schema, strict = true } = format;
  if (typeof strict !== 'boolean') throw new TypeError('responseFormat: strict must be a boolean');
  if (!isSchema(schema as never)) refuse('#', 'a schema is an object or a boolean');
  checkJson(schema);
  const text = JSON.stringify({ type, schema, strict });
  if (text.length > limits.text) exceeds('#', `it has more than ${limits.text} characters`);
  return text;
}

/** Before anything goes through the schema by recursion: it is JSON, and no deeper nor larger than it may be. */
function checkJson(schema: unknown): void {
  interface Found {
    value: unknown;
    pointer: string;
    within: readonly unknown[];
  }
  let level: Found[] = [{ value: schema, pointer: '#', within: [] }];
  let count = 0;
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > limits.depth) exceeds('#', `it is more than ${limits.depth} levels deep`);
    count += level.length;
    if (count > limits.text) exceeds('#', `it has more than ${limits.text} values`);
    level = level.flatMap(({ value, pointer, within }) => {
      if (typeof value === 'object' && value !== null && within.includes(value)) exceeds(pointer, 'it contains itself');
      if (!isJson(value)) refuse(pointer, `${describe(value)} is no JSON value`);
      if (typeof value !== 'object' || value === null) return [];
      const path = [...within, value];
      return Object.entries(value).map(([key, child]) => ({
        value: child,
        pointer: below(pointer, key),
        within: path,
      }));
    });
  }
}

/** A scalar, a list, or an object of no class of its own. */
function isJson(value: unknown): boolean {
  if (typeof value === 'number') return Number.isFinite(value);
  if (typeof value !== 'object' || value === null) return ['string', 'boolean', 'object'].includes(typeof value);
  if (Array.isArray(value)) return true;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function describe(value: unknown): string {
  if (typeof value === 'number' || value === undefined) return String(value);
  if (typeof value === 'bigint') return `${value}n`;
  return typeof value === 'object' ? `an instance of ${value?.constructor?.name}` : `a ${typeof value}`;
}

function compile(text: string): CompiledResponseFormat {
  const { type, schema, strict } = JSON.parse(text) as { type: string; schema: Schema; strict: boolean };
  if (type === 'text') return new CompiledResponseFormat(text, undefined);
  const grammar = type === 'json_object' ? compileSchema({ type: 'object' }, false) : compileSchema(schema, strict);
  return new CompiledResponseFormat(text, grammar);
}

/** Values by key, of which those used last are kept. */
class Recent<V> {
  readonly #entries = new Map<string, V>();

  constructor(
    readonly size: number,
    readonly onDrop: (value: V) => void = () => {},
  ) {}

  get(key: string, make: () => V): V {
    const value = this.#entries.get(key) ?? make();
    this.#entries.delete(key);
    this.#entries.set(key, value);
    const [oldest] = this.#entries;
    if (oldest && this.#entries.size > this.size) {
      this.#entries.delete(oldest[0]);
      this.onDrop(oldest[1]);
    }
    return value;
  }
}

/** The response formats of one model. */
export class ResponseFormats {
  readonly #engine: NativeEngine;
  readonly #tokenizer: Tokenizer | undefined;
  readonly #vocabSize: number;
  readonly #compiled = new Recent<CompiledResponseFormat>(64);
  readonly #handles: Recent<GrammarHandle>;
  #vocabulary: Promise<void> | undefined;

  constructor(engine: NativeEngine, tokenizer: Tokenizer | undefined, vocabSize: number) {
    this.#engine = engine;
    this.#tokenizer = tokenizer;
    this.#vocabSize = vocabSize;
    this.#handles = new Recent(16, (handle) => engine.releaseGrammar(handle));
  }

  /**
   * @throws TypeError, RangeError (see SchemaError); AtMoeError ERR_AT_MOE_UNSUPPORTED for a model without a tokenizer, or
   * with one whose tokens do not spell bytes.
   */
  compile(format: ResponseFormat | CompiledResponseFormat): CompiledResponseFormat {
    if (format instanceof CompiledResponseFormat) return format;
    const text = canonicalText(format);
    const compiled = this.#compiled.get(text, () => compile(text));
    if (compiled.grammar) checkSpelling(this.#neededTokenizer());
    return compiled;
  }

  /** Gives the engine the vocabulary, once. @throws AtMoeError ERR_AT_MOE_UNSUPPORTED. */
  prepare(): Promise<void> {
    this.#vocabulary ??= tokenBytes(this.#neededTokenizer(), this.#vocabSize).then((vocabulary) =>
      this.#engine.loadVocabulary(vocabulary),
    );
    return this.#vocabulary;
  }

  /** What the engine knows the grammar by; good for a request that is posted at once. */
  handleOf({ text, grammar }: CompiledResponseFormat): GrammarHandle {
    return this.#handles.get(text, () => this.#engine.createGrammar(grammar as GrammarDescription));
  }

  #neededTokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'a response format needs text, and the model has no tokenizer.json');
  }
}
