import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import type { Model } from '../../lib/index.js';
import { createServer } from '../../lib/server/index.js';
import {
  assertFields,
  errorOf,
  folder,
  openMixture,
  openModel,
  type Running,
  start,
  until,
  writeRandomAdapter,
} from './support.js';

const root = join(folder, 'root');
const text = 'note: cough\n';
const greedy = { prompt: text, temperature: 0, max_tokens: 12 };

let model: Model;
let running: Running;
let atRest: number;

before(async () => {
  model = await openModel();
  mkdirSync(root);
  for (const [name, seed] of [
    ['first', 1],
    ['second', 2],
  ] as const) {
    await writeRandomAdapter(model, join('root', name), seed);
  }
  const mixture = await openMixture(model);
  await mixture.save(join(root, 'mixture'));
  mixture.dispose();
  atRest = (await model.memory()).mixtures;
  running = await start(model, { adaptersRoot: root, maxAdapters: 3 });
});

const load = (body: object) => running.post('/v1/adapters', body);
/** As clients do it that name the type of every body. */
const unload = (name: string) =>
  fetch(`${running.url}/v1/adapters/${name}`, { method: 'DELETE', headers: { 'content-type': 'application/json' } });
const freed = () => until(async () => (await model.memory()).mixtures === atRest);

async function write(name: string): Promise<string | undefined> {
  const { choices } = await running.client.completions.create({ model: name, ...greedy });
  return choices[0]?.text;
}

async function alone(path: string): Promise<string> {
  const adapter = await model.loadAdapter(join(root, path));
  const answer = await adapter.complete(text, { maxTokens: 12 });
  adapter.dispose();
  return answer.text;
}

test('an adapter is loaded, listed, used, replaced and unloaded', async () => {
  const made = await load({ name: 'a', path: 'first' });
  assert.equal(made.status, 201);
  assertFields((await made.json()) as object, { name: 'a', kind: 'adapter' });
  assert.equal(await write('a'), await alone('first'));

  const again = await load({ name: 'a', path: 'second' });
  assert.equal(again.status, 409);
  assert.equal((await errorOf(again)).code, 'adapter_exists');
  assert.equal((await load({ name: 'a', path: join(root, 'second'), replace: true })).status, 200);
  assert.equal(await write('a'), await alone('second'));
  assert.notEqual(await alone('first'), await alone('second'));

  assert.equal((await unload('a')).status, 200);
  assert.equal((await unload('a')).status, 404);
  await assert.rejects(write('a'), { status: 404 });
  await freed();
});

test('a mixture is loaded with its experts as models', async () => {
  const made = await load({ name: 'm', path: 'mixture' });
  assertFields((await made.json()) as object, { kind: 'mixture', experts: ['task/diagnosis', 'task/triage'] });
  assert.notEqual(await write('m/task/diagnosis'), await write('m/task/triage'));
  const list = await (await fetch(`${running.url}/v1/adapters`)).json();
  assert.equal((list as { data: unknown[] }).data.length, 1);
  assert.equal((await fetch(`${running.url}/v1/adapters/m`)).status, 200);
  await unload('m');
  await freed();
});

test('a request in flight keeps the adapter that is unloaded under it', async () => {
  await load({ name: 'a', path: 'first' });
  const body = { model: 'a', prompt: text, temperature: 0, max_tokens: 400, stream: true as const };
  const stream = await running.client.completions.create({ ...body, ...{ ignore_eos: true } });
  let written = '';
  for await (const { choices } of stream) {
    if (written === '') await unload('a');
    written += choices[0]?.text;
  }
  const adapter = await model.loadAdapter(join(root, 'first'));
  assert.equal(written, (await adapter.complete(text, { maxTokens: 400, ignoreEos: true })).text);
  adapter.dispose();
  await freed();
});

test('adapters change under traffic, and every answer is that of one of them', async () => {
  const expected = [await alone('first'), await alone('second')];
  await load({ name: 'a', path: 'first' });
  let changing = true;
  const ask = async () => {
    const answers: (string | undefined)[] = [];
    while (changing) answers.push(await write('a'));
    return answers;
  };
  const asking = Array.from({ length: 2 }, ask);
  for (let i = 0; i < 4; i++) {
    assert.equal((await load({ name: 'a', path: i % 2 ? 'first' : 'second', replace: true })).status, 200);
  }
  changing = false;
  const answers = (await Promise.all(asking)).flat();
  assert.ok(answers.length > 0);
  for (const answer of answers) assert.ok(expected.includes(answer ?? ''), answer);
  await unload('a');
  await freed();
});

test('of two loads of one name at once, one is refused', async () => {
  const answers = await Promise.all([load({ name: 'a', path: 'first' }), load({ name: 'a', path: 'first' })]);
  assert.deepEqual(answers.map(({ status }) => status).sort(), [201, 409]);
  await unload('a');
});

test('no more are loaded than there may be', async () => {
  for (const name of ['a', 'b', 'c']) assert.equal((await load({ name, path: 'first' })).status, 201);
  const refused = await load({ name: 'd', path: 'first' });
  assert.equal(refused.status, 409);
  assert.equal((await errorOf(refused)).code, 'too_many_adapters');
  for (const name of ['a', 'b', 'c']) await unload(name);
});

test('only what lies under the root is read', async () => {
  await writeRandomAdapter(model, 'outside', 3);
  symlinkSync(join(folder, 'outside'), join(root, 'link'));
  const ways = ['..', '../outside', 'first/../../outside', join(folder, 'outside'), '/', 'link', 'a\0b', '../root-2'];
  for (const path of ways) {
    const answer = await load({ name: 'a', path });
    assert.equal(answer.status, 403, path);
    const { message, code } = await errorOf(answer);
    assert.equal(code, 'path_not_allowed');
    assert.ok(!message.includes(folder));
  }
});

test('folders that hold no adapter of this base are refused, without a word of where they lie', async () => {
  mkdirSync(join(root, 'empty'));
  mkdirSync(join(root, 'broken'));
  writeFileSync(join(root, 'broken', 'adapter_config.json'), '{');
  for (const [path, status] of [
    ['missing', 404],
    ['empty', 400],
    ['broken', 400],
  ] as const) {
    const answer = await load({ name: 'a', path });
    assert.equal(answer.status, status, path);
    assert.ok(!(await errorOf(answer)).message.includes(folder));
  }
});

test('bodies and names that are wrong', async () => {
  for (const name of ['', 'base', 'a/b', '../a', 'a b', 'x'.repeat(65)]) {
    assert.equal((await load({ name, path: 'first' })).status, 400, name);
  }
  assert.equal((await load({ name: 'a' })).status, 400);
  assert.equal((await load({ name: 'a', path: 'first', force: true })).status, 400);
});

test('without a root nothing is loaded or unloaded', async () => {
  const closed = await start(model, { adapters: { fixed: join(root, 'first') } });
  assert.equal((await closed.post('/v1/adapters', { name: 'a', path: 'first' })).status, 403);
  assert.equal((await fetch(`${closed.url}/v1/adapters/fixed`, { method: 'DELETE' })).status, 403);
  const { choices } = await closed.client.completions.create({ model: 'fixed', ...greedy });
  assert.equal(choices[0]?.text, await alone('first'));
  await closed.server.close();
  await freed();
});

test('what is odd about a mixture is said once, however often it is replaced', async () => {
  const file = join(root, 'mixture', 'mixture.json');
  const saved = readFileSync(file, 'utf8');
  const { base, ...rest } = JSON.parse(saved);
  const warnings: string[] = [];
  const write = (line: string) => void (JSON.parse(line).level === 40 && warnings.push(JSON.parse(line).msg));
  const own = await start(model, { adaptersRoot: root, logger: { level: 'warn', stream: { write } } });
  try {
    writeFileSync(file, JSON.stringify({ ...rest, base: { ...base, sha256: '0'.repeat(64) } }));
    const body = { name: 'odd', path: 'mixture', replace: true };
    for (let i = 0; i < 3; i++) assert.ok((await own.post('/v1/adapters', body)).ok);
    assert.equal(warnings.length, 1, warnings.join('\n'));
  } finally {
    writeFileSync(file, saved);
  }
});

test('a server keeps what is pinned on the device', async () => {
  const pinned = async () => (await model.stats()).adaptersPinned;
  const adapters = { a: join(root, 'first'), m: join(root, 'mixture') };
  const server = await createServer(model, { adapters, pinned: ['m'] });
  assert.equal(await pinned(), 1);
  await server.close();
  assert.equal(await pinned(), 0);
  await assert.rejects(createServer(model, { adapters, pinned: ['b'] }), RangeError);
});

test('what is loaded under a pinned name stays on the device as what was there before did', async () => {
  const pinned = async () => (await model.stats()).adaptersPinned;
  const pinning = await start(model, { adaptersRoot: root, adapters: { m: join(root, 'mixture') }, pinned: ['m'] });
  const made = await pinning.post('/v1/adapters', { name: 'm', path: 'first', replace: true });
  assert.equal(made.status, 200);
  assert.equal(await pinned(), 1);
  await pinning.post('/v1/adapters', { name: 'other', path: 'second' });
  assert.equal(await pinned(), 1);
  await pinning.server.close();
  assert.equal(await pinned(), 0);
});
