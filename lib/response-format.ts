import { orAborted } from './abort.js';
import { Compilations } from './compilations.js';
import { AtMoeError } from './errors.js';
import { isSchema, type Schema } from './grammar/keywords.js';
import { limits } from './grammar/limits.js';
import { schemaSteps } from './grammar/schema.js';
import { below, exceeds, refuse } from './grammar/schema-error.js';
import type { GrammarDescription, GrammarHandle, NativeEngine } from './native-types.js';
import { Recent } from './recent.js';
import { checkSpelling, tokenBytes } from './text/token-bytes.js';
import type { Tokenizer } from './text/tokenizer.js';
import type { Steps } from './turns.js';

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

const freeText = JSON.stringify({ type: 'text' });

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

/** A value and where it was found. */
interface Found {
  value: unknown;
  key: string;
  holder: Found | undefined;
}

function pointerOf({ key, holder }: Found): string {
  return holder ? below(pointerOf(holder), key) : '#';
}

function containsItself({ value, holder }: Found): boolean {
  for (let at = holder; at; at = at.holder) if (at.value === value) return true;
  return false;
}

/** Before anything goes through the schema by recursion: it is JSON, and no deeper nor larger than it may be. */
function checkJson(schema: unknown): void {
  let level: Found[] = [{ value: schema, key: '', holder: undefined }];
  let count = 0;
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > limits.depth) exceeds('#', `it is more than ${limits.depth} levels deep`);
    count += level.length;
    if (count > limits.text) exceeds('#', `it has more than ${limits.text} values`);
    const next: Found[] = [];
    for (const found of level) {
      const { value } = found;
      const isHolder = typeof value === 'object' && value !== null;
      if (isHolder && containsItself(found)) exceeds(pointerOf(found), 'it contains itself');
      if (!isJson(value)) refuse(pointerOf(found), `${describe(value)} is no JSON value`);
      if (!isHolder) continue;
      for (const [key, child] of Object.entries(value)) next.push({ value: child, key, holder: found });
    }
    level = next;
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

function* compile(text: string): Steps<CompiledResponseFormat> {
  const { type, schema, strict } = JSON.parse(text) as { type: string; schema: Schema; strict: boolean };
  if (type === 'text') return new CompiledResponseFormat(text, undefined);
  yield;
  const steps = type === 'json_object' ? schemaSteps({ type: 'object' }, false) : schemaSteps(schema, strict);
  return new CompiledResponseFormat(text, yield* steps);
}

/** A format as a request has it: of the right form, and compiled when the request is posted. */
export type AskedFormat = { readonly text: string } | CompiledResponseFormat;

/** The response formats of one model. */
export class ResponseFormats {
  readonly #engine: NativeEngine;
  readonly #tokenizer: Tokenizer | undefined;
  readonly #vocabSize: number;
  readonly #compiled = new Compilations(64, compile);
  readonly #handles: Recent<GrammarHandle>;
  #vocabulary: Promise<void> | undefined;

  constructor(engine: NativeEngine, tokenizer: Tokenizer | undefined, vocabSize: number) {
    this.#engine = engine;
    this.#tokenizer = tokenizer;
    this.#vocabSize = vocabSize;
    this.#handles = new Recent(16, (handle) => engine.releaseGrammar(handle));
  }

  /**
   * The format, undefined for free text, when there is nothing wrong that is seen at once.
   * @throws TypeError; RangeError for a schema that is too large or too deep; AtMoeError ERR_AT_MOE_UNSUPPORTED for a model
   * without a tokenizer, or with one whose tokens do not spell bytes.
   */
  check(format: ResponseFormat | CompiledResponseFormat): AskedFormat | undefined {
    const asked = format instanceof CompiledResponseFormat ? format : { text: canonicalText(format) };
    if (asked.text === freeText) return undefined;
    checkSpelling(this.#neededTokenizer());
    return asked;
  }

  /** In turns with the event loop. @throws as check(); TypeError, RangeError (see SchemaError); the signal's reason. */
  async compile(format: ResponseFormat, signal?: AbortSignal): Promise<CompiledResponseFormat> {
    return await this.#compiled.get(this.check(format)?.text ?? freeText, signal);
  }

  /** At once. @throws as compile(). */
  compileSync(format: ResponseFormat): CompiledResponseFormat {
    return this.#compiled.getNow(this.check(format)?.text ?? freeText);
  }

  /** Compiles the format, and gives the engine the vocabulary, once. @throws as compile(). */
  async prepare(asked: AskedFormat, signal?: AbortSignal): Promise<CompiledResponseFormat> {
    this.#vocabulary ??= tokenBytes(this.#neededTokenizer(), this.#vocabSize).then((vocabulary) =>
      this.#engine.loadVocabulary(vocabulary),
    );
    const compiled = asked instanceof CompiledResponseFormat ? asked : this.#compiled.get(asked.text, signal);
    const [prepared] = await Promise.all([compiled, orAborted(this.#vocabulary, signal)]);
    return prepared;
  }

  /** What the engine knows the grammar by; good for a request that is posted at once. */
  handleOf({ text, grammar }: CompiledResponseFormat): GrammarHandle {
    const known = this.#handles.get(text);
    if (known !== undefined) return known;
    const handle = this.#engine.createGrammar(grammar as GrammarDescription);
    this.#handles.set(text, handle);
    return handle;
  }

  #neededTokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'a response format needs text, and the model has no tokenizer.json');
  }
}
