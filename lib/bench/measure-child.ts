import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { AtMoeError } from '../errors.js';

/** What a script of this folder prints as JSON. @throws AtMoeError ERR_AT_MOE_INTERNAL with its errors; the signal's. */
export async function measureInChild<T>(script: string, args: string[], signal?: AbortSignal): Promise<T> {
  const path = fileURLToPath(new URL(`./${script}`, import.meta.url));
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [path, ...args], { signal });
    return JSON.parse(stdout) as T;
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new AtMoeError('ERR_AT_MOE_INTERNAL', `${script} failed: ${stderr?.trim()}`, { cause: error });
  }
}
