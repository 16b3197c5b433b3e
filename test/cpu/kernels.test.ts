// The kernels of every instruction set that this processor runs, one call at a time: test/kernels, a program of its own,
// compares them with plain loops. `npm run test:neon` runs it for arm64.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

const work = path.join(import.meta.dirname, '..', '..', '..', 'build', 'cmake');
const skip = !existsSync(path.join(work, 'CMakeCache.txt')) && 'there is no build (npm run build:native)';

test('kernels: every set of instructions does what plain loops do', { skip }, (t) => {
  const build = ['--build', work, '--config', 'Release', '--target', 'at_moe_kernels'];
  const built = spawnSync('cmake', build, { encoding: 'utf8' });
  assert.equal(built.status, 0, built.stdout + built.stderr);
  const program = ['Release', '.'].map((folder) => path.join(work, folder, 'at_moe_kernels')).find(existsSync);
  assert.ok(program);
  const { status, stdout, stderr } = spawnSync(program, { encoding: 'utf8' });
  assert.equal(status, 0, stdout + stderr);
  const lines = stdout.trim().split('\n');
  assert.ok(lines.some((line) => line.startsWith('ok')));
  for (const line of lines) if (line.startsWith('skipped')) t.diagnostic(line);
});
