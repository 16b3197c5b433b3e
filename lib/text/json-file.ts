import { readFile } from 'node:fs/promises';
import { AtMoeError } from '../errors.js';

/** Whether an error says that a path does not exist. */
export function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOENT' || code === 'ENOTDIR';
}

/**
 * The text of a file, or undefined when there is none.
 * @throws AtMoeError ERR_AT_MOE_IO when it exists but cannot be read.
 */
export async function readTextIfPresent(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw new AtMoeError('ERR_AT_MOE_IO', `cannot read ${file}: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * The JSON object in a file, or undefined when there is no such file.
 * @throws AtMoeError ERR_AT_MOE_IO when it cannot be read, ERR_AT_MOE_BAD_FILE when it is not a JSON object.
 */
export async function readJsonObjectIfPresent(file: string): Promise<Record<string, unknown> | undefined> {
  const text = await readTextIfPresent(file);
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text.startsWith('\uFEFF') ? text.slice(1) : text);
  } catch (error) {
    throw new AtMoeError('ERR_AT_MOE_BAD_FILE', `${file} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new AtMoeError('ERR_AT_MOE_BAD_FILE', `${file} does not hold a JSON object`);
  }
  return value as Record<string, unknown>;
}
