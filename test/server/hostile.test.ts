// Requests that are wrong on purpose: each gets its 4xx, and others are served meanwhile.
import assert from 'node:assert/strict';
import { request } from 'node:http';
import { after, afterEach, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { type Dialled, dial, errorOf, openModel, type Running, start } from './support.js';

let running: Running;
before(async () => {
  running = await start(await openModel(), { bodyLimit: 2 ** 20, requestTimeoutMs: 300 });
});
afterEach(async () => {
  const { status } = await running.post('/v1/completions', { model: 'base', prompt: 'note: cough\n', max_tokens: 2 });
  assert.equal(status, 200, 'others are served');
});

const complete = { model: 'base', prompt: 'note: cough\n', max_tokens: 2 };

async function refused(response: Promise<Response>, status: number, code?: string): Promise<void> {
  const answer = await response;
  const error = await errorOf(answer);
  assert.equal(answer.status, status);
  assert.equal(error.type, 'invalid_request_error');
  if (code !== undefined) assert.equal(error.code, code);
}

test('bodies that are no JSON object', async () => {
  await refused(running.post('/v1/completions', '{"model": "base", '), 400, 'invalid_json');
  await refused(running.post('/v1/completions', ''), 400, 'invalid_json');
  for (const body of ['[]', '"text"', 'null', '1']) await refused(running.post('/v1/completions', body), 400);
});

test('invalid UTF-8', async () => {
  const bytes = Uint8Array.from([...Buffer.from('{"model":"base","prompt":"'), 0xc3, 0x28, ...Buffer.from('"}')]);
  await refused(running.post('/v1/completions', bytes), 400, 'invalid_utf8');
});

test('keys that reach for a prototype', async () => {
  for (const key of ['__proto__', 'constructor']) {
    const body = `{"model":"base","prompt":"a","${key}":{"prototype":{"polluted":true}}}`;
    const answer = running.post('/v1/completions', body);
    assert.match((await errorOf((await answer).clone())).message, /__proto__|unknown parameter/);
    await refused(answer, 400);
  }
  assert.equal(({} as { polluted?: boolean }).polluted, undefined);
});

test('JSON 10,000 deep, in a field that is read and in one that is ignored', async () => {
  const deep = `${'['.repeat(10_000)}${']'.repeat(10_000)}`;
  for (const field of ['prompt', 'metadata', 'routing']) {
    await refused(running.post('/v1/completions', `{"model":"base","${field}":${deep}}`), 400, 'invalid_json');
  }
});

test('more wrong elements than are worth looking at', async () => {
  const many = `[${'0,'.repeat(200_000)}0]`;
  const keys = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`k${i}`, 'x']));
  await refused(running.post('/v1/chat/completions', `{"model":"base","messages":${many}}`), 400);
  await refused(running.post('/v1/completions', `{"model":"base","prompt":["a",${many.slice(1)}}`), 400);
  await refused(running.post('/v1/completions', { ...complete, stop: JSON.parse(many) }), 400);
  await refused(running.post('/v1/completions', { ...complete, routing: { deny: JSON.parse(many) } }), 400);
  await refused(running.post('/v1/completions', { ...complete, routing: { bias: keys } }), 400, 'invalid_json');
});

test('a body of 10 MB, of a stated length and in chunks', async () => {
  const big = JSON.stringify({ ...complete, prompt: 'a'.repeat(10 * 2 ** 20) });
  for (const chunked of [false, true]) {
    const status = await new Promise<number | string>((resolve) => {
      const headers = { 'content-type': 'application/json', ...(!chunked && { 'content-length': String(big.length) }) };
      const sent = request(`${running.url}/v1/completions`, { method: 'POST', headers }, (response) => {
        response.resume();
        resolve(response.statusCode ?? 0);
      });
      sent.on('error', ({ message }) => resolve(message));
      sent.end(big);
    });
    assert.equal(status, 413);
  }
});

test('another content type, an unknown route, a wrong method', async () => {
  const form = { 'content-type': 'application/x-www-form-urlencoded' };
  await refused(running.post('/v1/completions', 'model=base', form), 415);
  await refused(running.post('/v1/completions', JSON.stringify(complete), { 'content-type': 'text/plain' }), 415);
  await refused(running.post('/v1/embeddings', {}), 404, 'unknown_url');
  await refused(fetch(`${running.url}/v1/%zz`), 400);
  const response = await fetch(`${running.url}/v1/completions`);
  assert.equal(response.headers.get('allow'), 'POST');
  await refused(Promise.resolve(response), 405, 'method_not_allowed');
});

test('a body that is compressed', async () => {
  const zipped = gzipSync(JSON.stringify(complete));
  await refused(running.post('/v1/completions', zipped, { 'content-encoding': 'gzip' }), 415, 'unsupported_encoding');
  const plain = await running.post('/v1/completions', complete, { 'content-encoding': 'identity' });
  assert.equal(plain.status, 200);
});

test('an unknown route and a wrong method, with a body of any kind', async () => {
  for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) {
    for (const body of ['', '{"a":', '{}']) {
      const headers = { 'content-type': 'application/json' };
      await refused(fetch(`${running.url}/v1/nothing`, { method, headers, body }), 404, 'unknown_url');
      const response = await fetch(`${running.url}/v1/models`, { method, headers, body });
      assert.equal(response.headers.get('allow'), 'GET');
      await refused(Promise.resolve(response), 405, 'method_not_allowed');
    }
  }
  await refused(fetch(`${running.url}/v1/nothing`, { method: 'POST', body: 'text' }), 404, 'unknown_url');
});

const dialled: Dialled[] = [];
after(() => {
  for (const { socket } of dialled) socket.destroy();
});
const open = async () => {
  const connection = dial(running.port);
  dialled.push(connection);
  await connection.opened;
  return connection;
};
const head = (more: string) =>
  `POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${more}\r\n`;

test('headers without end, and bytes that are no HTTP', async () => {
  const flood = await open();
  flood.socket.write(head(`x-flood: ${'a'.repeat(20_000)}\r\n`));
  await flood.closed;
  assert.match(flood.text(), /^HTTP\/1\.1 431 [\s\S]*"error"/);
  const noise = await open();
  noise.socket.write('\u0016\u0003\u0001\u0002\r\n\r\n');
  await noise.closed;
  assert.match(noise.text(), /^HTTP\/1\.1 400 [\s\S]*"error"/);
});

test('a body that comes byte by byte is given up', async () => {
  const loris = await open();
  loris.socket.write(head('content-length: 1000\r\n'));
  const drip = setInterval(() => loris.socket.write(' '), 20);
  await loris.closed;
  clearInterval(drip);
  assert.match(loris.text(), /^HTTP\/1\.1 408 /);
});

test('uploads that are left half way', async () => {
  for (let i = 0; i < 20; i++) {
    const upload = await open();
    upload.socket.write(`${head('content-length: 1000\r\n')}{"model":`);
    upload.socket.destroy();
  }
});

test('1,000 idle connections', async () => {
  const idle = await Promise.all(Array.from({ length: 1000 }, open));
  const { status } = await running.post('/v1/completions', complete);
  assert.equal(status, 200);
  for (const { socket } of idle) socket.destroy();
});
