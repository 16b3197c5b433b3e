import { join } from 'node:path';
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { AtMoeError } from '../errors.js';
import { continuationTokenizer, type PrefixScheme, prefixScheme } from './continuation.js';
import { readJsonObjectIfPresent, readTextIfPresent } from './json-file.js';
import { readSpecialIds, type SpecialIds } from './special-ids.js';
import { spellingOf, type TokenSpelling } from './token-bytes.js';

type Json = Record<string, unknown>;

/** The parsed files of a tokenizer folder. */
export interface TokenizerFiles {
  tokenizer: Json;
  config?: Json;
  specialTokensMap?: Json;
  ids?: SpecialIds;
  /** Template of chat_template.jinja or chat_template.json; goes before the one in tokenizer_config.json. */
  chatTemplate?: string;
}

export interface EncodeOptions {
  /** Add what the tokenizer puts around a text (BOS for Llama, nothing for Qwen); default true. */
  addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out; default true. */
  skipSpecialTokens?: boolean;
}

interface AddedToken {
  id: number;
  content: string;
  special?: boolean;
}

/**
 * The tokenizer of a Hugging Face folder. Ids and text are those of the `tokenizers` library, with three choices of our
 * own: decode() never "cleans up" spaces before punctuation (it would change text that is already streamed out);
 * truncation and padding stored in tokenizer.json are ignored, as `transformers` does; ids without a token decode to
 * nothing.
 */
export class Tokenizer {
  /** Number of ids: the largest id plus one. The model's embedding may be larger. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  /** The end-of-sequence token of the tokenizer, appended to training completions. */
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  /** All ids that end a generation: those of generation_config.json (else config.json) and `eosId`. */
  readonly eosIds: readonly number[];
  /** Source text of the chat template, or of several by name; undefined when the folder has none. */
  readonly chatTemplate: string | Readonly<Record<string, string>> | undefined;
  /** Text of bos_token, eos_token and the like, as chat templates use them. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** How tokens spell bytes; undefined where they do not. */
  readonly spelling: TokenSpelling | undefined;

  readonly #base: HfTokenizer;
  readonly #continuation: HfTokenizer;
  readonly #prefixScheme: PrefixScheme;
  readonly #vocab: readonly (string | undefined)[];
  readonly #special = new Set<number>();
  readonly #added = new Set<number>();
  readonly #addBos: boolean | undefined;
  #longest: number | undefined;

  /** @throws AtMoeError ERR_AT_MOE_BAD_FILE when tokenizer.json is of a kind that cannot be used. */
  constructor(files: TokenizerFiles) {
    const config: Json = files.config ?? {};
    try {
      // Some published files leave out parts that the library wants to see as null.
      const full = {
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: null,
        added_tokens: [],
        ...files.tokenizer,
      };
      this.#base = new HfTokenizer(full, config);
      this.#continuation = continuationTokenizer(full, config, this.#base);
      for (const token of full.added_tokens as AddedToken[]) {
        this.#added.add(token.id);
        if (token.special) this.#special.add(token.id);
      }
    } catch (error) {
      throw new AtMoeError('ERR_AT_MOE_BAD_FILE', `unusable tokenizer.json: ${(error as Error).message}`, {
        cause: error,
      });
    }
    keepByteOrderMarks(this.#base.decoder);
    this.#prefixScheme = prefixScheme(files.tokenizer);
    this.spelling = spellingOf(files.tokenizer.decoder);
    this.#vocab = this.#base.model?.vocab ?? [];
    this.vocabSize = this.#vocab.length;
    this.specialTokens = specialTokenTexts({ ...config, ...files.specialTokensMap });
    const idOf = (name: string): number | undefined => {
      const text = this.specialTokens[name];
      return text === undefined ? undefined : this.#base.token_to_id(text);
    };
    this.bosId = idOf('bos_token') ?? files.ids?.bosId;
    this.eosId = idOf('eos_token') ?? files.ids?.eosIds[0];
    this.padId = idOf('pad_token') ?? files.ids?.padId;
    this.eosIds = [...new Set([...(files.ids?.eosIds ?? []), ...(this.eosId === undefined ? [] : [this.eosId])])];
    this.chatTemplate = files.chatTemplate ?? chatTemplateOf(config.chat_template);
    this.#addBos = typeof config.add_bos_token === 'boolean' ? config.add_bos_token : undefined;
  }

  /**
   * Reads a model or tokenizer folder.
   * @throws AtMoeError ERR_AT_MOE_NOT_FOUND when it has no tokenizer.json, ERR_AT_MOE_BAD_FILE when a file is damaged,
   * ERR_AT_MOE_IO.
   */
  static async load(folder: string): Promise<Tokenizer> {
    const tokenizer = await Tokenizer.loadIfPresent(folder);
    if (tokenizer) return tokenizer;
    throw new AtMoeError(
      'ERR_AT_MOE_NOT_FOUND',
      `${folder} has no tokenizer.json: give prompts as token ids, or save a fast tokenizer there`,
    );
  }

  /** As load(), but undefined for a folder without tokenizer.json: such a model takes token ids only. */
  static async loadIfPresent(folder: string): Promise<Tokenizer | undefined> {
    const json = (name: string): Promise<Json | undefined> => readJsonObjectIfPresent(join(folder, name));
    const tokenizer = await json('tokenizer.json');
    if (tokenizer === undefined) return undefined;
    const [config, specialTokensMap, ids, jinja, templateJson] = await Promise.all([
      json('tokenizer_config.json'),
      json('special_tokens_map.json'),
      readSpecialIds(folder),
      readTextIfPresent(join(folder, 'chat_template.jinja')),
      json('chat_template.json'),
    ]);
    const chatTemplate = jinja ?? (templateJson?.chat_template as string | undefined);
    return new Tokenizer({ tokenizer, config, specialTokensMap, ids, chatTemplate });
  }

  /** Characters of the longest token. */
  get longestToken(): number {
    this.#longest ??= this.#vocab.reduce((longest, token) => Math.max(longest, token?.length ?? 0), 1);
    return this.#longest;
  }

  /** Whether an id has a token. */
  has(id: number): boolean {
    return this.#vocab[id] !== undefined;
  }

  /** Whether an id is a special token, which decode() leaves out by default. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /** Whether an id is an added token: control tokens and the like, matched as a whole before text is split. */
  isAdded(id: number): boolean {
    return this.#added.has(id);
  }

  /** The id of a token by its exact text in the vocabulary. */
  tokenToId(token: string): number | undefined {
    return this.#base.token_to_id(token);
  }

  /** The vocabulary text of an id. */
  idToToken(id: number): string | undefined {
    return this.#vocab[id];
  }

  /** The ids of a text. Special tokens written out in the text become their ids. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== 'string') throw new TypeError('the text to encode must be a string');
    const addSpecialTokens = options.addSpecialTokens ?? true;
    const ids = this.#encodeWith(this.#base, text, addSpecialTokens);
    if (!addSpecialTokens || this.bosId === undefined) return ids;
    if (this.#addBos === true && ids[0] !== this.bosId) ids.unshift(this.bosId);
    if (this.#addBos === false && ids[0] === this.bosId && !text.startsWith(this.#vocab[this.bosId] as string))
      ids.shift();
    return ids;
  }

  /**
   * The ids of a text that follows `before`, without special tokens around it: the two id lists together decode to the
   * two texts together. A SentencePiece tokenizer writes a space before a text of its own; here it does so only where
   * it would in one long text, that is at the very start or, for some, after an added token.
   */
  encodeContinuation(text: string, before: ArrayLike<number>): number[] {
    const last = before.length === 0 ? undefined : (before[before.length - 1] as number);
    const atStart = last === undefined || (before.length === 1 && last === this.bosId);
    const afterAdded = last !== undefined && this.#added.has(last);
    const prefixed =
      this.#prefixScheme === 'always' ? atStart || afterAdded : this.#prefixScheme === 'first' && atStart;
    return this.#encodeWith(prefixed ? this.#base : this.#continuation, text, false);
  }

  /** The text of ids. Bytes that are no valid UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    if (!Array.isArray(ids) && !ArrayBuffer.isView(ids)) throw new TypeError('the ids to decode must be an array');
    const skip = options.skipSpecialTokens ?? true;
    const tokens: string[] = [];
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      const token = this.#vocab[id];
      if (token !== undefined && !(skip && this.#special.has(id))) tokens.push(token);
    }
    if (tokens.length === 0) return '';
    return this.#base.decoder ? this.#base.decoder.decode(tokens) : tokens.join(' ');
  }

  #encodeWith(tokenizer: HfTokenizer, text: string, addSpecialTokens: boolean): number[] {
    // Characters that the vocabulary lacks have no id where it has no unknown token either.
    return tokenizer
      .encode(text, { add_special_tokens: addSpecialTokens })
      .ids.filter((id: number | undefined) => id !== undefined);
  }
}

function specialTokenTexts(config: Json): Record<string, string> {
  const texts: Record<string, string> = {};
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith('_token')) continue;
    const text = typeof value === 'object' && value !== null ? (value as Json).content : value;
    if (typeof text === 'string') texts[name] = text;
  }
  return texts;
}

function chatTemplateOf(value: unknown): string | Record<string, string> | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  return Object.fromEntries(value.map(({ name, template }: { name: string; template: string }) => [name, template]));
}

/** The library's byte-fallback decoder drops a byte order mark at the start of its bytes; the reference keeps it. */
function keepByteOrderMarks(decoder: unknown): void {
  const { decoders, config } = (decoder ?? {}) as { decoders?: unknown[]; config?: { type?: string } };
  for (const part of decoders ?? []) keepByteOrderMarks(part);
  if (config?.type === 'ByteFallback') {
    (decoder as { text_decoder: InstanceType<typeof TextDecoder> }).text_decoder = new TextDecoder('utf-8', {
      ignoreBOM: true,
    });
  }
}
