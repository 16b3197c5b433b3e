import assert from 'node:assert/strict';
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { checkReplaceable, readStable, recoverFolder, replaceFile, replaceFolder } from '../../lib/formats/atomic.js';
import { toFloat32 } from '../../lib/formats/float-types.js';
import { readMixture, writeMixture } from '../../lib/formats/mixture-folder.js';
import { rejectsWith, temporaryFolder, tinyBase, tinyMixture } from './support.js';

const child = join(import.meta.dirname, 'save-child.js');
const content = (dir: string) => readFileSync(join(dir, 'file'), 'utf8');
const save = (dir: string, text: string) =>
  replaceFolder(dir, ['file'], (folder) => writeFile(join(folder, 'file'), text));

test('a folder is made, then replaced, with nothing left beside it', async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'deep', 'target');
  await save(dir, 'one');
  await save(dir, 'two');
  assert.equal(content(dir), 'two');
  assert.deepEqual(readdirSync(join(parent, 'deep')), ['target']);
});

test('a failing writer leaves the old folder and no sibling', async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'target');
  await save(dir, 'one');
  const full = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
  const failing = replaceFolder(dir, ['file'], async (folder) => {
    await writeFile(join(folder, 'file'), 'half');
    throw full;
  });
  await assert.rejects(failing, { code: 'ERR_AT_MOE_IO', cause: full });
  assert.equal(content(dir), 'one');
  assert.deepEqual(readdirSync(parent), ['target']);
  await rejectsWith(save(join(dir, 'file', 'below'), 'x'), 'ERR_AT_MOE_IO');
});

test('files that saving would delete stop it', async (t) => {
  const dir = join(temporaryFolder(t), 'target');
  mkdirSync(dir);
  await save(dir, 'into an empty folder');
  writeFileSync(join(dir, 'thesis.tex'), 'years of work');
  await rejectsWith(save(dir, 'two'), 'ERR_AT_MOE_IO', /thesis\.tex/);
  assert.ok(existsSync(join(dir, 'thesis.tex')));
});

test('a folder that cannot be saved to is told beforehand, and nothing is left by the look', async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'deep', 'target');
  await checkReplaceable(dir, ['file']);
  assert.deepEqual(readdirSync(parent), []);
  await save(dir, 'one');
  await checkReplaceable(dir, ['file']);
  await rejectsWith(checkReplaceable(dir, ['other']), 'ERR_AT_MOE_IO', /"file"/);
  await rejectsWith(checkReplaceable(join(dir, 'file', 'below'), []), 'ERR_AT_MOE_IO', /ENOTDIR/);
  await rejectsWith(checkReplaceable(join(dir, 'file'), []), 'ERR_AT_MOE_IO', /ENOTDIR/);
});

test('a place where no folder can be made is refused at once', { skip: process.platform !== 'linux' }, async () => {
  for (const dir of ['/proc/no-such/target', '/proc/target']) {
    await rejectsWith(save(dir, 'one'), 'ERR_AT_MOE_IO', /saving failed/);
    await rejectsWith(checkReplaceable(dir, []), 'ERR_AT_MOE_IO', /saving failed/);
  }
});

test('a link to a folder stays a link', { skip: process.platform === 'win32' }, async (t) => {
  const parent = temporaryFolder(t);
  const [real, link] = [join(parent, 'real'), join(parent, 'link')];
  await save(real, 'one');
  symlinkSync(real, link);
  await save(link, 'two');
  assert.equal(content(real), 'two');
  renameSync(real, join(parent, '.real.old'));
  await recoverFolder(link);
  assert.equal(content(link), 'two');
});

test('after a crash between the renames the old folder comes back; leftovers of dead processes go', async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'target');
  await save(dir, 'one');
  const dead = execFileSync(process.execPath, ['-p', 'process.pid'], { encoding: 'utf8' }).trim();
  renameSync(dir, join(parent, '.target.old'));
  mkdirSync(join(parent, `.target.tmp-${dead}-abc`));
  mkdirSync(join(parent, `.target.tmp-${process.ppid}-abc`));
  assert.equal(await readStable(dir, async () => content(dir)), 'one');
  await save(dir, 'two');
  assert.deepEqual(readdirSync(parent).sort(), [`.target.tmp-${process.ppid}-abc`, 'target']);
  renameSync(dir, join(parent, '.target.old'));
  await save(dir, 'three');
  assert.equal(content(dir), 'three');
});

test('a reader never sees half of an exchange, a saver never fails for its readers', async (t) => {
  const dir = join(temporaryFolder(t), 'target');
  const both = (text: string) =>
    replaceFolder(dir, ['a', 'b'], async (folder) => {
      await writeFile(join(folder, 'a'), text);
      await writeFile(join(folder, 'b'), text);
    });
  await both('0');
  let saving = true;
  const saves = (async () => {
    for (let i = 1; i <= 60; i++) await both(String(i));
    saving = false;
  })();
  let reads = 0;
  while (saving) {
    const [a, b] = await readStable(dir, async () => {
      const first = readFileSync(join(dir, 'a'), 'utf8');
      await sleep(reads % 3);
      return [first, readFileSync(join(dir, 'b'), 'utf8')];
    });
    assert.equal(a, b);
    reads++;
  }
  await saves;
  assert.ok(reads > 0);
});

test('saves of one folder at the same time queue up', async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'target');
  await Promise.all(Array.from({ length: 8 }, (_, i) => save(dir, String(i))));
  assert.equal(content(dir), '7');
  assert.deepEqual(readdirSync(parent), ['target']);
});

test('one file is replaced or stays', async (t) => {
  const parent = temporaryFolder(t);
  const path = join(parent, 'state.json');
  await replaceFile(path, (temporary) => writeFile(temporary, 'one'));
  const failing = replaceFile(path, async (temporary) => {
    await writeFile(temporary, 'half');
    throw new Error('disk full');
  });
  await rejectsWith(failing, 'ERR_AT_MOE_IO', /disk full/);
  assert.equal(readFileSync(path, 'utf8'), 'one');
  assert.deepEqual(readdirSync(parent), ['state.json']);
});

test('killed at any moment, a save leaves the old mixture or the new one', { timeout: 60_000 }, async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'mixture');
  for (let round = 0; round < 8; round++) {
    const saver = fork(child, ['forever', dir]);
    await once(saver, 'message');
    await sleep(Math.random() * 60);
    saver.kill('SIGKILL');
    await once(saver, 'exit');
    const { groups, general, router } = await readMixture(dir, tinyBase);
    const adapters = [...groups.flatMap(({ experts }) => experts), ...(general ? [general] : [])];
    const sources = [...router, ...adapters.flatMap(({ adapter }) => adapter.modules.flatMap(({ a, b }) => [a, b]))];
    const values = new Set(sources.flatMap(({ dtype, data }) => [...toFloat32(dtype, data as Uint8Array)]));
    assert.equal(values.size, 1, 'all tensors are of one save');
  }
  await writeMixture(dir, tinyBase, tinyMixture(1));
  assert.deepEqual(readdirSync(parent), ['mixture']);
});

test('a file size limit fails the save with its cause, not the process', {
  skip: process.platform === 'win32',
}, async (t) => {
  const parent = temporaryFolder(t);
  const dir = join(parent, 'target');
  await save(dir, 'one');
  const script = 'ulimit -f 64; exec "$0" "$@"';
  const source = join(parent, 'source');
  writeFileSync(source, Buffer.alloc(1 << 20));
  for (const mode of ['write', 'copy']) {
    const args = ['-c', script, process.execPath, child, mode, dir, source];
    const { message, ...rest } = JSON.parse(execFileSync('bash', args, { encoding: 'utf8' })) as { message: string };
    assert.deepEqual(rest, { code: 'ERR_AT_MOE_IO', cause: 'EFBIG' });
    assert.match(message, mode === 'copy' ? /\/target\/file: writing failed: EFBIG/ : /target: saving failed: EFBIG/);
  }
  assert.equal(content(dir), 'one');
  assert.deepEqual(readdirSync(parent).sort(), ['source', 'target']);
});
