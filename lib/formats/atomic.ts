import { randomBytes } from 'node:crypto';
import type { Dirent } from 'node:fs';
import { mkdir, open, readdir, readlink, realpath, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { checkFolder } from '../arguments.js';
import { AtMoeError } from '../errors.js';
import { ioError } from './json.js';

interface Siblings {
  target: string;
  parent: string;
  /** The replaced folder between the two renames; whole whenever it exists. */
  old: string;
  temporaryPrefix: string;
}

function errno(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}

async function siblingsOf(path: string): Promise<Siblings> {
  // A link to a folder stays a link; what it points to is replaced, and recovered when it is missing.
  const target = await realpath(path).catch(async () => {
    const link = await readlink(path).catch(() => '');
    return resolve(dirname(path), link || basename(resolve(path)));
  });
  const [parent, name] = [dirname(target), basename(target)];
  return { target, parent, old: join(parent, `.${name}.old`), temporaryPrefix: `.${name}.tmp-` };
}

function temporaryPath({ parent, temporaryPrefix }: Siblings): string {
  return join(parent, `${temporaryPrefix}${process.pid}-${randomBytes(6).toString('hex')}`);
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errno(error) === 'ENOENT') return false;
    throw error;
  }
}

function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

/** Renames; false when the source is gone or the destination is taken by another process. */
async function tryRename(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
    return true;
  } catch (error) {
    if (['ENOENT', 'ENOTEMPTY', 'EEXIST'].includes(errno(error) ?? '')) return false;
    throw error;
  }
}

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } catch (error) {
    // Windows cannot sync a folder, and some network file systems do not either.
    if (!['EPERM', 'EINVAL', 'EISDIR', 'ENOTSUP'].includes(errno(error) ?? '')) throw error;
  } finally {
    await handle.close();
  }
}

async function syncTree(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    await (entry.isDirectory() ? syncTree(path) : syncPath(path));
  }
  await syncPath(folder);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errno(error) !== 'ESRCH';
  }
}

async function removeLeftovers({ parent, temporaryPrefix }: Siblings): Promise<void> {
  for (const name of await readdir(parent)) {
    const pid = name.startsWith(temporaryPrefix) ? Number.parseInt(name.slice(temporaryPrefix.length), 10) : Number.NaN;
    if (pid > 0 && !isAlive(pid)) await rm(join(parent, name), { recursive: true, force: true });
  }
}

/** Takes the old folder away under another name first, so that one called `.old` is never half deleted. */
async function discardOld(siblings: Siblings): Promise<void> {
  const trash = temporaryPath(siblings);
  if (await tryRename(siblings.old, trash)) await rm(trash, { recursive: true, force: true });
}

async function exchange(siblings: Siblings, temporary: string): Promise<void> {
  const { target, old } = siblings;
  try {
    for (let attempt = 0; attempt < 50; attempt++) {
      if (await exists(target)) {
        await discardOld(siblings);
        if (!(await tryRename(target, old))) continue;
      }
      // Taken again if a reader thought this process dead and put the old folder back.
      if (await tryRename(temporary, target)) return await syncPath(siblings.parent);
    }
  } catch (error) {
    await tryRename(old, target);
    throw error;
  }
  throw new Error('other processes keep replacing it');
}

/** Node's own recursive mkdir never ends where mkdir says ENOENT although the parent is there, as in /proc. */
async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if (await isFolder(path)) return;
    const parent = dirname(path);
    if (errno(error) !== 'ENOENT' || (await exists(parent))) throw error;
    await makeFolder(parent);
    await makeFolder(path);
  }
}

async function refuseForeignFiles({ target }: Siblings, owned: string[]): Promise<void> {
  let entries: Dirent[];
  try {
    entries = await readdir(target, { withFileTypes: true });
  } catch (error) {
    if (errno(error) === 'ENOENT') return;
    throw error;
  }
  const foreign = entries.find(({ name }) => !owned.includes(name));
  if (foreign) {
    const message = `${target}: holds ${JSON.stringify(foreign.name)}, which saving there would delete; choose another folder`;
    throw new AtMoeError('ERR_AT_MOE_IO', message);
  }
}

const queues = new Map<string, Promise<void>>();

/** Runs saves of one folder in this thread one after the other. */
async function inTurn(key: string, work: () => Promise<void>): Promise<void> {
  const previous = queues.get(key);
  const turn = (previous ?? Promise.resolve()).then(work, work);
  queues.set(key, turn);
  try {
    await turn;
  } finally {
    if (queues.get(key) === turn) queues.delete(key);
  }
}

const missingFolder = 'a folder to save to is needed';

function savingError(path: string, error: unknown): AtMoeError {
  if (error instanceof AtMoeError) return error;
  return new AtMoeError('ERR_AT_MOE_IO', `${path}: saving failed: ${(error as Error).message}`, { cause: error });
}

/** A coded error about a file of the sibling, which is gone when it is read, as one about the folder asked for. */
function namingTarget(error: unknown, temporary: string, dir: string): unknown {
  if (!(error instanceof AtMoeError) || !error.message.startsWith(temporary)) return error;
  return new AtMoeError(error.code, `${dir}${error.message.slice(temporary.length)}`, { cause: error.cause });
}

/**
 * Says before a long work what replaceFolder would say after it: files that would be lost, or a place where no folder
 * can be made. Leaves nothing behind. Errors: TypeError without a path; IO.
 */
export async function checkReplaceable(dir: string, owned: string[]): Promise<void> {
  checkFolder(dir, missingFolder);
  try {
    const siblings = await siblingsOf(dir);
    await refuseForeignFiles(siblings, owned);
    let { parent } = siblings;
    while (!(await exists(parent))) parent = dirname(parent);
    const trial = temporaryPath({ ...siblings, parent });
    await mkdir(trial);
    await rmdir(trial);
  } catch (error) {
    throw savingError(dir, error);
  }
}

/**
 * Replaces a folder, or makes it: `write` fills a sibling, which is synced and then exchanged by rename, so that a crash leaves the old
 * folder or the new one. `owned` lists the names the folder may hold already; any other file stops the save, since it would be lost.
 * Errors: TypeError without a path; those of `write` if coded; IO otherwise, the old folder in place and the sibling removed.
 */
export async function replaceFolder(
  dir: string,
  owned: string[],
  write: (folder: string) => Promise<void>,
): Promise<void> {
  checkFolder(dir, missingFolder);
  await inTurn(resolve(dir), async () => {
    try {
      await makeFolder(dirname(resolve(dir)));
      await recoverFolder(dir);
      const siblings = await siblingsOf(dir);
      await refuseForeignFiles(siblings, owned);
      await removeLeftovers(siblings);
      const temporary = temporaryPath(siblings);
      try {
        await mkdir(temporary);
        await write(temporary).catch((error: unknown) => {
          throw namingTarget(error, temporary, dir);
        });
        await syncTree(temporary);
        await exchange(siblings, temporary);
        await discardOld(siblings);
      } finally {
        await rm(temporary, { recursive: true, force: true });
      }
    } catch (error) {
      throw savingError(dir, error);
    }
  });
}

/** Replaces one file through a synced sibling and a rename. Errors: those of `write` if coded, IO otherwise. */
export async function replaceFile(path: string, write: (temporary: string) => Promise<void>): Promise<void> {
  const siblings = await siblingsOf(path);
  const temporary = temporaryPath(siblings);
  try {
    await makeFolder(siblings.parent);
    await removeLeftovers(siblings);
    await write(temporary);
    await syncPath(temporary);
    await rename(temporary, siblings.target);
    await syncPath(siblings.parent);
  } catch (error) {
    // Where nothing can be written there may be nothing to remove either; the first failure is the one to tell.
    await rm(temporary, { force: true }).catch(() => undefined);
    throw savingError(path, error);
  }
}

/** Puts back the folder that a save killed between its two renames left under its old name. Error: IO. */
export async function recoverFolder(dir: string): Promise<void> {
  const { target, old } = await siblingsOf(dir);
  try {
    // A live saver is between its renames for well under a millisecond: wait for it before taking it for dead.
    for (let waited = 0; waited < 20; waited++) {
      if ((await exists(target)) || !(await exists(old))) return;
      await sleep(10);
    }
    await tryRename(old, target);
  } catch (cause) {
    throw ioError(dir, 'recovering', cause);
  }
}

/** Changes with every exchange of the folder; undefined while there is none. */
async function identity(dir: string): Promise<string | undefined> {
  try {
    const { ino, ctimeNs } = await stat(dir, { bigint: true });
    return `${ino} ${ctimeNs}`;
  } catch (cause) {
    if (errno(cause) === 'ENOENT') return undefined;
    throw ioError(dir, 'reading', cause);
  }
}

/**
 * Recovers a folder, then reads it by `read`, again if a save exchanged it meanwhile.
 * Errors: NOT_FOUND, IO, those of `read`; BUSY when the folder is replaced over and over.
 */
export async function readStable<T>(dir: string, read: () => Promise<T>): Promise<T> {
  let seen = false;
  for (let attempt = 0; attempt < 20; attempt++) {
    await recoverFolder(dir);
    const before = await identity(dir);
    if (before === undefined) {
      if (!seen && attempt >= 3) throw new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${dir}: no such folder`);
      await sleep(1);
      continue;
    }
    seen = true;
    const result = await read().then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    );
    if (before !== (await identity(dir))) continue;
    if ('error' in result) throw result.error;
    return result.value;
  }
  throw new AtMoeError('ERR_AT_MOE_BUSY', `${dir}: is being replaced all the time`);
}
