// The command: a process that is told to end while it writes.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { cli, main } from '../helpers/cli.js';
import { baseDir, openModel, writeRandomAdapter } from './support.js';

test('at-moe serve finishes its streams on SIGTERM and exits 0', async () => {
  const dir = await writeRandomAdapter(await openModel(), 'legal', 1);
  const flags = ['--port', '0', '--threads', '1', '--kv-tokens', '8192', '--max-tokens', '500', '--name', 'demo'];
  const keys = ['--api-key-env', 'TEST_KEYS'];
  const child = spawn(process.execPath, [main, 'serve', baseDir, '--adapter', `legal=${dir}`, ...flags, ...keys], {
    env: { ...process.env, TEST_KEYS: 'one, two' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const log: string[] = [];
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => log.push(chunk));
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
  const url = /^listening on (http:\/\/127\.0\.0\.1:\d+)$/.exec(line)?.[1];
  assert.ok(url, line);
  const headers = { authorization: 'Bearer two', 'content-type': 'application/json' };
  const body = { model: 'legal', prompt: 'note: cough\n', max_tokens: 500, ignore_eos: true, stream: true };
  const answer = await fetch(`${url}/v1/completions`, { method: 'POST', headers, body: JSON.stringify(body) });
  const ended = once(child, 'close');
  child.kill('SIGTERM');
  const text = await answer.text();
  assert.match(text, /\[DONE\]/);
  assert.deepEqual(await ended, [0, null]);
  const entries = log
    .join('')
    .trim()
    .split('\n')
    .map((entry) => JSON.parse(entry) as Record<string, unknown>);
  assert.equal(entries.find(({ route }) => route === '/v1/completions')?.completionTokens, 500);
});

test('wrong use of serve exits 2 with one line', async () => {
  const wrong = [
    [baseDir, '--model', baseDir],
    [baseDir, '--mixture', 'folder'],
    [baseDir, '--mixture', 'a=x', '--adapter', 'a=y'],
    [baseDir, '--api-key-env', 'NOT_SET_AT_ALL'],
    [baseDir, '--mixture', 'base=folder'],
    [baseDir, '--grace', '-1'],
    [baseDir, '--max-adapters', '0'],
    [baseDir, '--stall-timeout', '1e9'],
  ];
  const results = await Promise.all(wrong.map((args) => cli(['serve', ...args])));
  for (const [i, { status, stdout, stderr }] of results.entries()) {
    assert.equal(status, 2, `${wrong[i]?.join(' ')}: ${stderr}`);
    assert.equal(stdout, '');
    assert.match(stderr, /^at-moe serve: [^\n]+\n$/);
    const [flag = '', value = ''] = (wrong[i] ?? []).slice(-2);
    if (/^[-\d]/.test(value)) assert.ok(stderr.includes(`${flag} is at `), stderr);
  }
});

test('what is not there, or taken, exits 1 with one line and its code', async () => {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const { port } = taken.address() as AddressInfo;
  const wrong: [args: string[], message: RegExp][] = [
    [[baseDir, '--mixture', 'a=/nowhere'], /^error: there is no folder \/nowhere \[ERR_AT_MOE_NOT_FOUND\]\n$/],
    [[baseDir, '--adapters-root', '/nowhere'], /^error: there is no folder \/nowhere \[ERR_AT_MOE_NOT_FOUND\]\n$/],
    [[baseDir, '--port', String(port), '--kv-tokens', '2048'], /^error: listen EADDRINUSE[^\n]* \[EADDRINUSE\]\n$/],
  ];
  const results = await Promise.all(wrong.map(([args]) => cli(['serve', ...args])));
  taken.close();
  for (const [i, { status, stdout, stderr }] of results.entries()) {
    assert.equal(status, 1, stderr);
    assert.equal(stdout, '');
    assert.match(stderr, wrong[i]?.[1] as RegExp);
  }
});
