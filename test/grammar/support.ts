import { readFileSync } from 'node:fs';
import type { Schema } from '../../lib/grammar/keywords.js';
import { compileSchema } from '../../lib/grammar/schema.js';
import type { GrammarDescription, VocabularyDescription } from '../../lib/native-types.js';
import { tokenBytes } from '../../lib/text/token-bytes.js';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { run } from '../helpers/ops.js';

const encoder = new TextEncoder();

/** A vocabulary of these tokens, and a last one that is no part of any text. */
export function vocabularyOf(tokens: (string | Uint8Array)[]): VocabularyDescription {
  const parts = [
    ...tokens.map((token) => (typeof token === 'string' ? encoder.encode(token) : token)),
    new Uint8Array(),
  ];
  const offsets = [0];
  for (const part of parts) offsets.push((offsets.at(-1) as number) + part.length);
  return { bytes: Uint8Array.from(parts.flatMap((part) => [...part])), offsets: Int32Array.from(offsets) };
}

export const singleBytes = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
const byteVocabulary = vocabularyOf(singleBytes);

export function bytesOf({ bytes, offsets }: VocabularyDescription, id: number): Uint8Array {
  return bytes.subarray(offsets[id], offsets[id + 1]);
}

export const sizeOf = ({ offsets }: VocabularyDescription): number => offsets.length - 1;

/** What a text of tokens has come to; undefined when it is not the beginning of any in the language. */
export function read(grammar: GrammarDescription, text: string | Uint8Array): { complete: boolean } | undefined {
  const tokens = Int32Array.from(typeof text === 'string' ? encoder.encode(text) : text);
  try {
    const { complete } = run('grammarSets', 'cpu', { vocabulary: byteVocabulary, grammar, tokens });
    return { complete };
  } catch (error) {
    if (/does not continue the text/.test((error as Error).message)) return undefined;
    throw error;
  }
}

/** Whether a text is a value of the schema. */
export function accepts(schema: Schema, text: string | Uint8Array, strict = true): boolean {
  return read(compileSchema(schema, strict), text)?.complete === true;
}

const demo = new URL('../../../examples/demo/base/', import.meta.url);

/** The demo's tokenizer, with tokens that straddle the structure of JSON. */
export async function demoVocabulary(): Promise<VocabularyDescription> {
  const tokenizer = new Tokenizer({ tokenizer: JSON.parse(readFileSync(new URL('tokenizer.json', demo), 'utf8')) });
  const own = await tokenBytes(tokenizer, tokenizer.vocabSize);
  const tokens = Array.from({ length: sizeOf(own) }, (_, id) => bytesOf(own, id));
  return vocabularyOf([...tokens, ...straddling]);
}

export const straddling = [
  '{"',
  '":',
  '": ',
  '":"',
  '","',
  '", "',
  '"}',
  '"},',
  '"],"',
  '":[',
  '[{"',
  '}}',
  '1,',
  '"]}',
  '\\u00',
];

/** Ids of a text's tokens, the longest that fit first. */
export function tokensOf(vocabulary: VocabularyDescription, text: string): Int32Array {
  const bytes = Buffer.from(text);
  const byText = new Map<string, number>();
  for (let id = 0; id < sizeOf(vocabulary); id++) {
    const token = Buffer.from(bytesOf(vocabulary, id));
    if (token.length > 0) byText.set(token.toString('latin1'), id);
  }
  const ids: number[] = [];
  for (let at = 0; at < bytes.length; ) {
    let length = Math.min(32, bytes.length - at);
    while (!byText.has(bytes.subarray(at, at + length).toString('latin1'))) length--;
    ids.push(byText.get(bytes.subarray(at, at + length).toString('latin1')) as number);
    at += length;
  }
  return Int32Array.from(ids);
}

export interface Walk {
  text: string;
  tokens: Int32Array;
  ended: boolean;
}

/** Texts, behind `tokens` if there are any, drawn token by token among those allowed by these weights. */
export function walks(
  vocabulary: VocabularyDescription,
  grammar: GrammarDescription,
  weights: Float32Array,
  options: { seed: number; walks: number; maxTokens: number; tokens?: Int32Array },
): Walk[] {
  const { tokens, lengths, ended } = run('grammarWalks', 'cpu', { vocabulary, grammar, weights, ...options });
  let at = 0;
  return Array.from(lengths as Int32Array, (length, i) => {
    const own = (tokens as Int32Array).slice(at, at + length);
    at += length;
    const text = Buffer.concat(Array.from([...(options.tokens ?? []), ...own], (id) => bytesOf(vocabulary, id)));
    return {
      text: new TextDecoder('utf-8', { fatal: ended[i] === 1 }).decode(text),
      tokens: own,
      ended: ended[i] === 1,
    };
  });
}
