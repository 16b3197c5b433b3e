import { stat } from 'node:fs/promises';

/** Something that changes when a file is written or replaced; 'missing' for one that is not there. By path. */
export async function fileVersions(paths: readonly string[]): Promise<Record<string, string>> {
  const version = async (path: string) => {
    const found = await stat(path, { bigint: true }).catch(() => undefined);
    return [path, found ? `${found.dev} ${found.ino} ${found.size} ${found.mtimeNs}` : 'missing'] as const;
  };
  return Object.fromEntries(await Promise.all(paths.map(version)));
}
