import { realpath } from 'node:fs/promises';
import { isAbsolute, join, relative, resolve, sep } from 'node:path';
import { ApiError } from './errors.js';

function isInside(root: string, path: string): boolean {
  const way = relative(root, path);
  return way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way);
}

const outside = () =>
  new ApiError(403, 'path: outside the folder that adapters may be loaded from', {
    code: 'path_not_allowed',
    param: 'path',
  });

/**
 * The real path of a folder given relative to `root`, which is a real path itself. What lies outside, also by way of a
 * symbolic link, is refused, and refused alike whether it exists or not.
 * @throws ApiError 403, 404
 */
export async function insideRoot(root: string, path: string): Promise<string> {
  if (path.includes('\0')) throw outside();
  const wanted = resolve(root, path);
  if (!isInside(root, wanted)) throw outside();
  const real = await realpath(wanted).catch((cause: unknown) => {
    throw new ApiError(404, 'path: no such folder', { code: 'adapter_not_found', param: 'path', cause });
  });
  if (!isInside(root, real)) throw outside();
  return real;
}

/** A message without the root's own path, which is no client's business. */
export function withoutRoot(root: string, message: string): string {
  return message.replaceAll(join(root, sep), '').replaceAll(root, '.');
}
