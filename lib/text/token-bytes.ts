import { AtMoeError } from '../errors.js';
import type { VocabularyDescription } from '../native-types.js';
import { parts } from './continuation.js';
import type { Tokenizer } from './tokenizer.js';

/** How a tokenizer's tokens spell text. */
export type TokenSpelling = 'byte-level' | 'byte-fallback';

/** The spelling by the decoder of a tokenizer.json; undefined for tokens that have no bytes of their own. */
export function spellingOf(decoder: unknown): TokenSpelling | undefined {
  const types = parts(decoder, 'decoders').map(({ type }) => type);
  if (types.includes('ByteLevel')) return 'byte-level';
  return types.includes('ByteFallback') ? 'byte-fallback' : undefined;
}

/** The bytes that byte-level vocabularies write as they are; the others are the code points from 256 on, in order. */
function byteLevelAlphabet(): Map<string, number> {
  const shown = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let next = 256;
  return new Map(
    Array.from({ length: 256 }, (_, byte) => [String.fromCodePoint(shown(byte) ? byte : next++), byte] as const),
  );
}

const encoder = new TextEncoder();
const alphabet = byteLevelAlphabet();

function byteLevel(token: string): Uint8Array {
  const bytes = Uint8Array.from(token, (letter) => alphabet.get(letter) ?? Number.NaN);
  return [...token].every((letter) => alphabet.has(letter)) ? bytes : new Uint8Array();
}

function byteFallback(token: string): Uint8Array {
  const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
  return byte ? Uint8Array.of(Number.parseInt(byte[1] as string, 16)) : encoder.encode(token.replaceAll('▁', ' '));
}

/** Tokens between two turns of the event loop. */
const slice = 8192;

/**
 * The bytes of every token, for a model of `size` ids; none for added tokens and ids without a token, which are no part
 * of a text that is held to a format. Gives way to the event loop.
 * @throws AtMoeError ERR_AT_MOE_UNSUPPORTED for a vocabulary that cannot spell every text.
 */
export async function tokenBytes(tokenizer: Tokenizer, size: number): Promise<VocabularyDescription> {
  checkSpelling(tokenizer);
  const spell = tokenizer.spelling === 'byte-level' ? byteLevel : byteFallback;
  const parts: Uint8Array[] = [];
  const offsets = new Int32Array(size + 1);
  const alone = new Set<number>();
  let end = 0;
  for (let id = 0; id < size; id++) {
    if (id % slice === slice - 1) await new Promise((resolve) => setImmediate(resolve));
    const token = tokenizer.isAdded(id) ? undefined : tokenizer.idToToken(id);
    const bytes = token === undefined ? undefined : spell(token);
    if (bytes) parts.push(bytes);
    if (bytes?.length === 1) alone.add(bytes[0] as number);
    end += bytes?.length ?? 0;
    offsets[id + 1] = end;
  }
  for (let byte = 0x20; byte < 0xf5; byte++) {
    if (alone.has(byte) || byte === 0x7f || (byte >= 0xc0 && byte < 0xc2)) continue;
    throw unsupported(`it has no token for the byte 0x${byte.toString(16)} alone`);
  }
  const bytes = new Uint8Array(end);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return { bytes, offsets };
}

/** @throws AtMoeError ERR_AT_MOE_UNSUPPORTED for a tokenizer whose tokens are not bytes. */
export function checkSpelling({ spelling }: Tokenizer): void {
  if (!spelling) throw unsupported('its tokens are not byte-level, and have no fall-back to bytes');
}

function unsupported(why: string): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `the tokenizer cannot be held to a response format: ${why}`);
}
