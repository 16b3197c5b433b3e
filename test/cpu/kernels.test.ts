// The kernels of every instruction set that this processor runs, one call at a time: test/kernels, a program of its own,
// compares them with plain loops. `npm run test:neon` runs it for arm64.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

const work = path.join(import.meta.dirname, '..', '..', '..', 'build', 'cmake');
const noBuild = !existsSync(path.join(work, 'CMakeCache.txt')) && 'there is no build (npm run build:native)';
const noTiles = (process.platform !== 'linux' || process.arch !== 'x64') && 'emulated tiles exist on Linux x86-64 only';

/** The program's lines, of which none may say that a check failed. */
function check(target: string, folder = '.'): string[] {
  const built = spawnSync('cmake', ['--build', work, '--config', 'Release', '--target', target], { encoding: 'utf8' });
  assert.equal(built.status, 0, built.stdout + built.stderr);
  const program = [path.join(folder, 'Release'), folder].map((part) => path.join(work, part, target)).find(existsSync);
  assert.ok(program, `${target} is not where it was built`);
  const { status, stdout, stderr } = spawnSync(program, { encoding: 'utf8' });
  assert.equal(status, 0, stdout + stderr);
  return stdout.trim().split('\n');
}

test('kernels: every set of instructions does what plain loops do', { skip: noBuild }, (t) => {
  const lines = check('at_moe_kernels');
  assert.ok(lines.some((line) => line.startsWith('ok')));
  for (const line of lines) if (line.startsWith('skipped')) t.diagnostic(line);
});

test('kernels: products of pairs by emulated tiles', { skip: noBuild || noTiles }, () => {
  const lines = check('at_moe_emulated_tiles', path.join('cuda', 'emulated'));
  assert.ok(lines.some((line) => line.startsWith('skipped  amx') || /^ok +amx, pairs$/.test(line)));
});
