import assert from 'node:assert/strict';
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Writable } from 'node:stream';
import { before, test } from 'node:test';
import type { Model } from '../../lib/index.js';
import { sendEvents } from '../../lib/server/events.js';
import { createServer } from '../../lib/server/index.js';
import { OpenRequests } from '../../lib/server/open-requests.js';
import { dial, errorOf, idle, openMixture, openModel, start, until } from './support.js';

let model: Model;
before(async () => {
  model = await openModel();
});

const long = { model: 'base', prompt: 'note: cough\n', ignore_eos: true, temperature: 0 };
const streamed = { ...long, stream: true };

test('who leaves ends the work, waiting for a stream or for the whole, and is no fault of the server', async () => {
  const levels: number[] = [];
  const write = (line: string) => void levels.push(JSON.parse(line).level);
  const { url, metric } = await start(model, { logger: { level: 'info', stream: { write } } });
  for (const stream of [false, true]) {
    const controller = new AbortController();
    const answer = fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...long, max_tokens: 4000, stream }),
      signal: controller.signal,
    });
    await until(async () => (await model.memory()).kvFreeTokens < (await model.memory()).kvTokens);
    controller.abort();
    await assert.rejects(async () => await (await answer).text());
    await idle(model);
  }
  await until(async () => (await metric('at_moe_http_requests_total{route="/v1/completions",status="499"}')) === 2);
  assert.deepEqual(
    levels.filter((level) => level > 30),
    [],
  );
});

test('close lets streams finish and takes nothing new', async () => {
  const { server, post, url } = await start(model);
  const stream = await post('/v1/completions', { ...streamed, max_tokens: 3000 });
  const closing = server.close();
  const health = await fetch(`${url}/healthz`);
  assert.equal(health.status, 503);
  assert.equal((await errorOf(health)).code, 'shutting_down');
  assert.equal((await post('/v1/completions', { ...long, max_tokens: 1 })).status, 503);
  const text = await stream.text();
  assert.match(text, /"finish_reason":"length"[\s\S]*\[DONE\]/);
  await closing;
  await assert.rejects(fetch(`${url}/healthz`));
  await server.close();
});

test('what is not done within the grace is told so', async () => {
  const { server, post } = await start(model);
  const stream = await post('/v1/completions', { ...streamed, max_tokens: 4000 });
  const whole = post('/v1/completions', { ...long, max_tokens: 4000 });
  await until(async () => (await model.stats()).running === 2);
  const [text, answer] = await Promise.all([stream.text(), whole, server.close({ graceMs: 20 })]);
  assert.match(text, /"code":"shutting_down"/);
  assert.doesNotMatch(text, /\[DONE\]/);
  assert.equal(answer.status, 503);
  assert.equal((await errorOf(answer)).code, 'shutting_down');
  await idle(model);
});

test('a request on an old connection after close is refused, and idle connections hold nothing up', async () => {
  const { server, post, port } = await start(model);
  const idleOne = dial(port);
  const old = dial(port);
  await Promise.all([idleOne.opened, old.opened]);
  const stream = await post('/v1/completions', { ...streamed, max_tokens: 3000 });
  old.socket.write('GET /v1/models HTTP/1.1\r\nhost: a\r\n');
  const closing = server.close();
  old.socket.write('\r\n');
  await until(() => old.text() !== '');
  assert.match(old.text(), /^HTTP\/1\.1 503 [\s\S]*shutting_down/);
  await stream.text();
  await closing;
  await Promise.all([idleOne.closed, old.closed]);
});

test('a mixture that its owner disposes of is gone for its requests alone', async () => {
  const mixture = await openMixture(model);
  const { post } = await start(model, { adapters: { medical: mixture } });
  mixture.dispose();
  const answer = await post('/v1/completions', { ...long, model: 'medical', max_tokens: 2 });
  assert.equal(answer.status, 503);
  assert.equal((await errorOf(answer)).code, 'model_disposed');
  assert.equal((await post('/v1/completions', { ...long, max_tokens: 2 })).status, 200);
});

test('a failed start leaves nothing open', async () => {
  await assert.rejects(createServer(model, { adapters: { a: '/nowhere' } }), { code: 'invalid_adapter' });
  await assert.rejects(createServer(undefined as never), /needs a loaded model/);
  await assert.rejects(createServer(model, { adapters: { a: 5 as never } }), TypeError);
  await assert.rejects(createServer(model, { port: 1 } as object), TypeError);
  await assert.rejects(createServer(model, { bodyLimit: 0 }), RangeError);
});

test('a reader that does not read stops its own writer', async () => {
  const slow = new Writable({ highWaterMark: 64, write: () => undefined }) as ServerResponse;
  let taken = 0;
  async function* events() {
    for (;;) yield { taken: ++taken };
  }
  const controller = new AbortController();
  const sent = sendEvents(slow, { value: {} }, events(), { signal: controller.signal, stallMs: 60_000 });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(taken < 10, `${taken} events taken`);
  controller.abort(new Error('gone'));
  await assert.rejects(sent, /gone/);
});

test('a reader that never reads is given up', async () => {
  const stuck = new Writable({ highWaterMark: 1, write: () => undefined }) as ServerResponse;
  const controller = new AbortController();
  stuck.once('close', () => controller.abort(new Error('closed')));
  async function* events() {
    yield {};
  }
  await assert.rejects(sendEvents(stuck, { value: {} }, events(), { signal: controller.signal, stallMs: 5 }), /closed/);
});

test('a reader that never reads the end is given up', async () => {
  const open = new OpenRequests(20);
  const left = new Promise((resolve) => {
    const server = createHttpServer((request, response) => {
      open.add(request, response, resolve);
      response.end(Buffer.alloc(2 ** 26));
      server.close();
    });
    server.listen(0, '127.0.0.1', () => {
      const { socket } = dial((server.address() as AddressInfo).port);
      socket.pause();
      socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
    });
  });
  assert.equal(await left, true);
  assert.equal(open.size, 0);
});

test('keys: all but the health asks for one', async () => {
  const { url, post, client } = await start(model, { apiKeys: ['one', 'two'] });
  assert.equal((await fetch(`${url}/healthz`)).status, 200);
  for (const path of ['/v1/models', '/metrics', '/v1/adapters', '/nowhere']) {
    const answer = await fetch(url + path);
    assert.equal(answer.status, 401, path);
    assert.equal((await errorOf(answer)).code, 'invalid_api_key');
  }
  const ask = async (authorization: string) =>
    (await post('/v1/completions', { ...long, max_tokens: 1 }, { authorization })).status;
  assert.equal(await ask('Bearer two'), 200);
  for (const wrong of ['Bearer three', 'Bearer on', 'Bearer', 'one', 'Basic one']) assert.equal(await ask(wrong), 401);
  assert.ok((await client.models.list()).data.length > 0);
});

test('metrics are in the text format of Prometheus and count what was done', async () => {
  const mixture = await openMixture(model);
  const { url, post, metric } = await start(model, { adapters: { medical: mixture } });
  for (const stream of [true, false])
    await (await post('/v1/completions', { ...long, model: 'medical', max_tokens: 5, stream })).text();
  await (await post('/v1/completions', { model: 'nobody', prompt: 'a' })).text();
  const answer = await fetch(`${url}/metrics`);
  assert.match(answer.headers.get('content-type') ?? '', /^text\/plain; version=0\.0\.4/);
  const number = String.raw`(?:[-+]?[\d.]+(?:e[-+]?\d+)?|[-+]Inf|Nan)`;
  const sample = new RegExp(`^[a-z_][a-z0-9_]*(?:\\{(?:[a-z_]+="(?:[^"\\\\]|\\\\.)*",?)+\\})? ${number}$`, 'i');
  for (const line of (await answer.text()).split('\n'))
    assert.ok(line === '' || line.startsWith('# ') || sample.test(line), line);

  const route = 'route="/v1/completions"';
  assert.equal(await metric(`at_moe_http_requests_total{${route},status="200"}`), 2);
  assert.equal(await metric(`at_moe_http_requests_total{${route},status="404"}`), 1);
  assert.equal(await metric('at_moe_completion_tokens_total{model="medical"}'), 10);
  assert.equal(await metric('at_moe_prompt_tokens_total{model="medical"}'), 10);
  assert.equal(await metric('at_moe_time_to_first_token_seconds_count{model="medical"}'), 2);
  assert.equal(await metric('at_moe_inter_token_seconds_count{model="medical"}'), 8);
  assert.equal(await metric('at_moe_expert_weight_total{model="medical",expert="task/triage"}'), 1);
  assert.equal(await metric('at_moe_http_requests_open'), 1);
  assert.equal(await metric('at_moe_kv_tokens{state="free"}'), (await model.memory()).kvFreeTokens);
});

test('the log tells of requests and never of what they say', async () => {
  const lines: string[] = [];
  const logger = { level: 'trace', stream: { write: (line: string) => void lines.push(line) } };
  const { post, server } = await start(model, { logger });
  const secret = 'fever';
  await (await post('/v1/completions', { ...long, max_tokens: 3, prompt: `note: ${secret}\n` })).text();
  await (await post('/v1/completions', { ...long, max_tokens: -3, prompt: secret })).text();
  await (
    await post(`/v1/chat/completions?a=${secret}`, { model: 'base', messages: [{ role: secret, content: secret }] })
  ).text();
  await server.close();
  const log = lines.join('');
  assert.ok(!log.includes(secret), log);
  const entry = lines.map((line) => JSON.parse(line)).find(({ status }) => status === 200);
  const { route, model: name, promptTokens, completionTokens, reqId } = entry;
  assert.deepEqual([route, name, promptTokens, completionTokens], ['/v1/completions', 'base', 5, 3]);
  assert.match(reqId, /^[0-9a-f-]{36}$/);
});
