import { createHash, randomUUID } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { getRepoFolderName, type ListFileEntry } from '@huggingface/hub';
import { AtMoeError } from './errors.js';
import { readJsonObjectIfPresent } from './text/json-file.js';

export const commitHash = /^[0-9a-f]{40}$/;
export const indexFile = 'model.safetensors.index.json';

/**
 * One model in a Hugging Face cache: refs/<revision> holds a commit, snapshots/<commit>/<file> links to blobs/<etag>.
 */
export class CachedRepository {
  readonly folder: string;

  constructor(cacheDir: string, name: string) {
    this.folder = join(cacheDir, getRepoFolderName({ name, type: 'model' }));
  }

  snapshot(commit: string): string {
    return join(this.folder, 'snapshots', commit);
  }

  has(commit: string, path: string): Promise<boolean> {
    return exists(join(this.snapshot(commit), path));
  }

  /** The snapshot of a revision that has a config and all the weights it lists, if there is one. */
  async completeSnapshot(revision: string): Promise<string | undefined> {
    const ref = join(this.folder, 'refs', ...revision.split('/'));
    const commit = commitHash.test(revision) ? revision : await readFile(ref, 'utf8').catch(() => undefined);
    if (commit === undefined) return undefined;
    const folder = this.snapshot(commit.trim());
    const names = await readdir(folder).catch(() => [] as string[]);
    if (!names.includes('config.json')) return undefined;
    let weights = names.filter((name) => name.endsWith('.safetensors'));
    if (names.includes(indexFile)) {
      const index = await readJsonObjectIfPresent(join(folder, indexFile));
      weights = [...new Set<string>(Object.values((index?.weight_map as object | undefined) ?? {}))];
    }
    const present = await Promise.all(weights.map((name) => exists(join(folder, name))));
    return weights.length > 0 && present.every(Boolean) ? folder : undefined;
  }

  async setRevision(revision: string, commit: string): Promise<void> {
    if (revision === commit) return;
    const ref = join(this.folder, 'refs', ...revision.split('/'));
    await mkdir(dirname(ref), { recursive: true });
    await writeFile(ref, commit);
  }

  /** Writes a file's bytes under a name of its own, checks size and hash, then puts it in place in one step. */
  async store(
    commit: string,
    { path, size, lfs, oid, xetHash }: ListFileEntry,
    blob: Blob,
    signal: AbortSignal | undefined,
    onBytes: (bytes: number) => void,
  ): Promise<void> {
    const etag = lfs?.oid ?? xetHash ?? oid;
    if (etag === undefined || !/^\w+$/.test(etag))
      throw new AtMoeError('ERR_AT_MOE_IO', `the Hub gave no hash for ${path}`);
    const target = join(this.folder, 'blobs', etag);
    const link = join(this.snapshot(commit), path);
    await mkdir(dirname(target), { recursive: true });
    await mkdir(dirname(link), { recursive: true });
    if (!(await exists(target))) {
      const incomplete = `${target}.${randomUUID()}.incomplete`;
      const hash = createHash('sha256');
      let written = 0;
      const count = async function* (chunks: AsyncIterable<Uint8Array>) {
        for await (const chunk of chunks) {
          hash.update(chunk);
          written += chunk.length;
          onBytes(chunk.length);
          yield chunk;
        }
      };
      try {
        await pipeline(blob.stream(), count, createWriteStream(incomplete), { signal });
        if (written !== size || (lfs && hash.digest('hex') !== lfs.oid)) {
          const message = `${path} arrived damaged: ${written} of ${size} bytes, or another content than announced`;
          throw new AtMoeError('ERR_AT_MOE_BAD_FILE', message);
        }
        await rename(incomplete, target);
      } catch (error) {
        await rm(incomplete, { force: true });
        throw error;
      }
    }
    await rm(link, { force: true });
    // Windows makes links only with special rights; a copy serves as well.
    await symlink(relative(dirname(link), target), link).catch(() => copyFile(target, link));
  }
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
