import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function repositoryRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

/** Real tokenizers and models next to the repository; not part of it. */
export const sharedData = join(repositoryRoot(), '..', 'shared', 'data');

/** A `skip` value for node:test: the reason when a path of the shared data is absent, else false. */
export function unlessPresent(path: string): string | false {
  return existsSync(join(sharedData, path)) ? false : `needs ../shared/data/${path}`;
}

/** The parsed JSON of a file there, taken to be a T. */
export function readShared<T>(path: string): T {
  return JSON.parse(readFileSync(join(sharedData, path), 'utf8'));
}
