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

/** Bytes by code unit: byte-level vocabularies write some as they are, and the others as the code points from 256 on. */
function byteLevelAlphabet(): number[] {
  const shown = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  const bytes: number[] = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) bytes[shown(byte) ? byte : next++] = byte;
  return bytes;
}

const alphabet = byteLevelAlphabet();

/** Bytes one after the other. */
class Bytes {
  #bytes = new Uint8Array(1 << 16);
  length = 0;

  /** Room for `count` more. */
  reserve(count: number): void {
    if (this.length + count <= this.#bytes.length) return;
    const larger = new Uint8Array(2 * (this.length + count));
    larger.set(this.#bytes);
    this.#bytes = larger;
  }

  addByteLevel(token: string): void {
    this.reserve(token.length);
    const start = this.length;
    for (let i = 0; i < token.length; i++) {
      const byte = alphabet[token.charCodeAt(i)];
      if (byte === undefined) {
        this.length = start;
        return;
      }
      this.#bytes[this.length++] = byte;
    }
  }

  addByteFallback(token: string): void {
    this.reserve(3 * token.length);
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
    if (byte) this.#bytes[this.length++] = Number.parseInt(byte[1] as string, 16);
    else this.length += encoder.encodeInto(token.replaceAll('▁', ' '), this.#bytes.subarray(this.length)).written;
  }

  at(index: number): number {
    return this.#bytes[index] as number;
  }

  whole(): Uint8Array {
    return this.#bytes.slice(0, this.length);
  }
}

const encoder = new TextEncoder();

/** Tokens between two turns of the event loop. */
const slice = 8192;

/**
 * The bytes of every token, for a model of `size` ids; none for added tokens and ids without a token, which are no part
 * of a text that is held to a format. Gives way to the event loop.
 * @throws AtMoeError ERR_AT_MOE_UNSUPPORTED for a vocabulary that cannot spell every text.
 */
export async function tokenBytes(tokenizer: Tokenizer, size: number): Promise<VocabularyDescription> {
  checkSpelling(tokenizer);
  const bytes = new Bytes();
  const offsets = new Int32Array(size + 1);
  const alone = new Uint8Array(256);
  for (let id = 0; id < size; id++) {
    if (id % slice === slice - 1) await new Promise((resolve) => setImmediate(resolve));
    const token = tokenizer.isAdded(id) ? undefined : tokenizer.idToToken(id);
    const start = bytes.length;
    if (token !== undefined && tokenizer.spelling === 'byte-level') bytes.addByteLevel(token);
    else if (token !== undefined) bytes.addByteFallback(token);
    if (bytes.length === start + 1) alone[bytes.at(start)] = 1;
    offsets[id + 1] = bytes.length;
  }
  for (let byte = 0x20; byte < 0xf5; byte++) {
    if (alone[byte] || byte === 0x7f || byte === 0xc0 || byte === 0xc1) continue;
    throw unsupported(`it has no token for the byte 0x${byte.toString(16)} alone`);
  }
  return { bytes: bytes.whole(), offsets };
}

/** @throws AtMoeError ERR_AT_MOE_UNSUPPORTED for a tokenizer whose tokens are not bytes. */
export function checkSpelling({ spelling }: Tokenizer): void {
  if (!spelling) throw unsupported('its tokens are not byte-level, and have no fall-back to bytes');
}

function unsupported(why: string): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `the tokenizer cannot be held to a response format: ${why}`);
}
