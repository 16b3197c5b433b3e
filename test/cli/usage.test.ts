import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cli } from '../helpers/cli.js';

const commands = ['train', 'generate', 'serve', 'inspect', 'evaluate', 'bench', 'quantize', 'devices', 'golden'];

test('help names every command, and every command has its own help', async () => {
  const help = await cli(['--help']);
  assert.equal(help.status, 0);
  const documentation = readFileSync(new URL('../../../docs/cli.md', import.meta.url), 'utf8');
  const helps = await Promise.all(commands.map((command) => cli([command, '--help'])));
  for (const [i, own] of helps.entries()) {
    const command = commands[i];
    assert.match(help.stdout, new RegExp(`^  ${command} `, 'm'));
    for (const [flag] of own.stdout.matchAll(/(?<=^ .*)--[a-z][a-z0-9-]+(?=.* {2})/gm)) {
      if (flag !== '--help') assert.ok(documentation.includes(flag), `docs/cli.md does not name ${flag}`);
    }
    assert.equal(own.status, 0, command);
    assert.match(own.stdout, new RegExp(`at-moe ${command}`), command);
    if (command !== 'golden') assert.match(own.stdout, /\nexamples:\n {2}\S/, command);
    assert.equal(own.stderr, '');
  }
});

test('the version is the one of package.json', async () => {
  const { status, stdout } = await cli(['--version']);
  assert.equal(status, 0);
  assert.match(stdout, /^\d+\.\d+\.\d+\S*\n$/);
});

test('wrong use exits 2 with one line on stderr', async () => {
  const wrong = [
    [],
    ['trian'],
    ['train'],
    ['train', 'something', '--model', 'm', '--data', 'd'],
    ['train', 'expert', '--model', 'm', '--mixture', 'x', '--data', 'd'],
    ['train', 'router', '--model', 'm', '--mixture', 'x'],
    ['train', 'adapter', '--model', 'm', '--data', 'd'],
    ['train', 'base', '--model', 'm', '--data', 'd', '--mixture', 'x', '--output', 'o'],
    ['train', 'base', '--model', 'm', '--data', 'd', '--output', 'o', '--rank', '4'],
    ['train', 'adapter', '--model', 'm', '--data', 'd', '--output', 'o', '--routing', 'scope=token'],
    ['train', 'router', '--model', 'm', '--data', 'd', '--mixture', 'x', '--group', 'task=a,a'],
    ['train', 'router', '--model', 'm', '--data', 'd', '--mixture', 'x', '--group', 'task=a', '--group', 'task=b'],
    ['generate', 'hello'],
    ['generate', 'hello', '--model', 'm', '--unknown'],
    ['generate', 'hello', '--model', 'm', '--temperature', 'warm'],
    ['generate', 'hello', '--model', 'm', '--max-tokens', '1.5'],
    ['generate', 'hello', '--model', 'm', '--set', 'style'],
    ['generate', 'hello', '--model', 'm', '--device', 'tpu'],
    ['generate', 'hello', '--model', 'm', '--device', 'cuda:one'],
    ['generate', 'hello', '--model', 'm', '--mixture', 'x', '--adapter', 'y'],
    ['generate', 'hello', 'again', '--model', 'm'],
    ['inspect'],
    ['inspect', 'hello', '--model', 'm'],
    ['evaluate', '--model', 'm'],
    ['bench'],
    ['bench', 'decode', '--shape', 'no-such-shape'],
    ['bench', 'decode', '--experts', '2', '--groups', '3'],
    ['bench', 'decode', '--expert-top-k', '-1'],
    ['quantize', 'm'],
    ['devices', 'all'],
    ['golden', '--device', 'tpu'],
    ['golden'],
  ];
  const results = await Promise.all(wrong.map((args) => cli(args)));
  for (const [i, { status, stdout, stderr }] of results.entries()) {
    const line = wrong[i]?.join(' ');
    assert.equal(status, 2, line);
    assert.equal(stdout, '', line);
    assert.match(stderr, /^at-moe[^\n]+\n$/, line);
  }
});

test('a negative number is a value, with or without a space', async () => {
  const wrong = await cli(['generate', 'hello', '--model', 'm', '--max-tokens', '-1.5']);
  assert.match(wrong.stderr, /--max-tokens takes an integer, not "-1.5"/);
  const missing = await cli([
    'train',
    'router',
    '--model',
    './no-such-folder',
    '--mixture',
    'x',
    '--data',
    'd',
    '--entropy',
    '-0.01',
  ]);
  assert.match(missing.stderr, /ERR_AT_MOE_NOT_FOUND/);
});

test('a GPU by number and the emulated device are taken beside the choices', async () => {
  for (const command of ['generate', 'bench']) {
    assert.doesNotMatch((await cli([command, '--help'])).stdout, /emulated/);
  }
  for (const device of ['emulated', 'cuda:1']) {
    const { stderr } = await cli(['generate', 'hello', '--model', './no-such-folder', '--device', device]);
    assert.match(stderr, /ERR_AT_MOE_NOT_FOUND/);
  }
});

test('a failure exits 1 with its code', async () => {
  const { status, stderr } = await cli(['generate', 'hello', '--model', './no-such-folder']);
  assert.equal(status, 1);
  assert.match(stderr, /^error: [^\n]+ \[ERR_AT_MOE_NOT_FOUND\]\n$/);
});

test('devices are listed, with a reason where one cannot be used', async () => {
  const { status, stdout } = await cli(['devices', '--json']);
  assert.equal(status, 0);
  const found = JSON.parse(stdout) as { name: string; available: boolean; reason: string; memoryBytes: number }[];
  const cpu = found.find(({ name }) => name === 'cpu');
  assert.equal(cpu?.available, true);
  assert.ok((cpu?.memoryBytes ?? 0) > 0);
  for (const { available, reason } of found) assert.equal(reason === '', available);
  const text = await cli(['devices']);
  assert.match(text.stdout, /^cpu +yes /m);
});
