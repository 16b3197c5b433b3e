import { createReadStream } from 'node:fs';
import { AtMoeError } from '../errors.js';
import { isMissing } from '../text/json-file.js';

/** Longest accepted line in bytes, line end excluded. */
export const maxLineBytes = 10 * 1024 * 1024;

export interface JsonlLine {
  /** 1 for the first line of the file; blank lines count. */
  line: number;
  value: unknown;
}

/**
 * Reads a JSON Lines file as a stream. A byte order mark, CRLF line ends and blank lines are accepted.
 * @throws AtMoeError ERR_AT_MOE_BAD_DATA with file:line for a line that is too long, not UTF-8 or not JSON;
 * ERR_AT_MOE_NOT_FOUND when there is no such file; ERR_AT_MOE_IO when it cannot be read.
 */
export async function* readJsonl(file: string): AsyncGenerator<JsonlLine> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let line = 0;
  for await (const bytes of readLines(file)) {
    line++;
    let text: string;
    try {
      text = decoder.decode(bytes);
    } catch (error) {
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${file}:${line}: not valid UTF-8`, { cause: error });
    }
    if (line === 1 && text.startsWith('\uFEFF')) text = text.slice(1);
    if (text.trim() === '') continue;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      const message = `${file}:${line}: not JSON: ${(error as Error).message}`;
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', message, { cause: error });
    }
    yield { line, value };
  }
}

/**
 * The bytes of each line without its line feed. A last line without one counts, an empty one after the last line feed
 * not.
 */
async function* readLines(file: string): AsyncGenerator<Buffer> {
  let parts: Buffer[] = [];
  let size = 0;
  let line = 1;
  const grow = (part: Buffer): void => {
    parts.push(part);
    size += part.length;
    if (size > maxLineBytes) {
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${file}:${line}: the line is longer than ${maxLineBytes} bytes`);
    }
  };
  for await (const chunk of chunksOf(file)) {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      grow(chunk.subarray(start, end));
      yield parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
      parts = [];
      size = 0;
      line++;
      start = end + 1;
    }
    if (start < chunk.length) grow(chunk.subarray(start));
  }
  if (size > 0) yield Buffer.concat(parts);
}

async function* chunksOf(file: string): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of createReadStream(file)) yield chunk as Buffer;
  } catch (error) {
    const code = isMissing(error) ? 'ERR_AT_MOE_NOT_FOUND' : 'ERR_AT_MOE_IO';
    throw new AtMoeError(code, `cannot read ${file}: ${(error as Error).message}`, { cause: error });
  }
}
