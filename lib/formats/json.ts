import { readFile } from 'node:fs/promises';
import type { z } from 'zod';
import { AtMoeError } from '../errors.js';

/** One line for people: `groups.0.name: Invalid string; routing: Unrecognized key: "x"`. */
export function formatIssues(error: z.ZodError): string {
  return error.issues
    .map((issue) => (issue.path.length > 0 ? `${issue.path.map(String).join('.')}: ${issue.message}` : issue.message))
    .join('; ');
}

/** Turns an error of the file system into a coded one: NOT_FOUND when there is no such file, IO otherwise. */
export function ioError(path: string, doing: string, cause: unknown): AtMoeError {
  const { code, message } = cause as NodeJS.ErrnoException;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    return new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${path}: no such file or folder`, { cause });
  }
  return new AtMoeError('ERR_AT_MOE_IO', `${path}: ${doing} failed: ${message}`, { cause });
}

export function badFile(path: string, problem: string, cause?: unknown): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_BAD_FILE', `${path}: ${problem}`, cause === undefined ? undefined : { cause });
}

export function unsupported(path: string, problem: string): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `${path}: ${problem}`);
}

/** End of the string literal that starts at `start`, as the index after its closing quote. `text` is valid JSON. */
function endOfString(text: string, start: number): number {
  for (let i = start + 1; ; i++) {
    const c = text.charCodeAt(i);
    if (c === 0x5c) i++;
    else if (c === 0x22) return i + 1;
  }
}

/** The first key that occurs twice in one object of `text`, which is valid JSON; JSON.parse would keep the last in silence. */
function duplicateKey(text: string): string | undefined {
  const scopes: (Set<string> | null)[] = [];
  let expectsKey = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === '"') {
      const end = endOfString(text, i);
      const keys = scopes.at(-1);
      if (expectsKey && keys) {
        const key = JSON.parse(text.slice(i, end)) as string;
        if (keys.has(key)) return key;
        keys.add(key);
        expectsKey = false;
      }
      i = end - 1;
    } else if (c === '{') {
      scopes.push(new Set());
      expectsKey = true;
    } else if (c === '[') {
      scopes.push(null);
      expectsKey = false;
    } else if (c === '}' || c === ']') {
      scopes.pop();
      expectsKey = false;
    } else if (c === ',') {
      expectsKey = scopes.at(-1) instanceof Set;
    }
  }
  return undefined;
}

/** Parses JSON text that must be UTF-8 without a key given twice. `path` names it in errors (BAD_FILE). */
export function parseJson(path: string, bytes: Uint8Array): unknown {
  let value: unknown;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (cause) {
    throw badFile(path, `not valid JSON: ${(cause as Error).message}`, cause);
  }
  const key = duplicateKey(text);
  if (key !== undefined) throw badFile(path, `the key ${JSON.stringify(key)} occurs twice`);
  return value;
}

/** The bytes of a file. Errors: NOT_FOUND, IO. */
export async function readBytes(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw ioError(path, 'reading', cause);
  }
}

/** Reads and parses a JSON file. Errors: NOT_FOUND (missing), IO (unreadable), BAD_FILE (not JSON, or a key twice). */
export async function readJson(path: string): Promise<unknown> {
  return parseJson(path, await readBytes(path));
}

/** Checks a parsed file against a schema. Error: BAD_FILE with every issue in one line. */
export function checkSchema<T extends z.ZodType>(path: string, schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (!result.success) throw badFile(path, formatIssues(result.error));
  return result.data;
}
