import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../examples/demo/main.js', import.meta.url));

test('the demo says what its flags are, and what is wrong with them', () => {
  const demo = (...args: string[]) => spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  const help = demo('--help');
  assert.equal(help.status, 0);
  assert.match(help.stdout, /--expert-steps/);
  for (const [args, message] of [
    [['--seed', 'x'], /--seed takes an integer/],
    [['--router-steps=0'], /--router-steps takes an integer from 1 on/],
    [['--unknown'], /Unknown option '--unknown'/],
  ] as const) {
    const { status, stderr } = demo(...args);
    assert.equal(status, 2);
    assert.match(stderr, message);
    assert.equal(stderr.trim().split('\n').length, 1);
  }
});
