import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { lstat, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { type DownloadProgress, resolveModel } from '../lib/hub.js';

const commit = 'c0ffee'.padEnd(40, '0');
const weights = Buffer.alloc(300_000, 7);
const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

interface FakeFile {
  data: Buffer;
  lfs?: string;
}

let files: Record<string, FakeFile>;
let requests: string[];
let status: number;
let broken: boolean;
let server: Server;
let hubUrl: string;
let cacheDir: string;

/** The four requests that a download makes: model info, tree, size of a file, its bytes. */
function startServer(): Promise<Server> {
  const listening = createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://hub');
    requests.push(`${request.method} ${url.pathname}`);
    const json = (value: unknown): void => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(value));
    };
    const needsToken = url.pathname.includes('gated') && request.headers.authorization !== 'Bearer hf_right';
    if (status !== 200 || needsToken) {
      response.statusCode = status === 200 ? 401 : status;
      return json({ error: 'refused' });
    }
    if (url.pathname === '/api/models/owner/tiny/revision/main' || url.pathname.includes('gated/tiny/revision')) {
      return json({ _id: '1', id: 'owner/tiny', sha: commit, lastModified: '2024-01-01' });
    }
    if (url.pathname.endsWith(`/tree/${commit}`)) {
      return json(
        Object.entries(files).map(([path, { data, lfs }]) => ({
          type: 'file',
          path,
          size: data.length,
          oid: sha256(data).slice(0, 40),
          ...(lfs && { lfs: { oid: lfs, size: data.length, pointerSize: 130 } }),
        })),
      );
    }
    const file = files[url.pathname.split(`/resolve/${commit}/`)[1] ?? ''];
    if (!file) {
      response.statusCode = 404;
      return json({ error: 'not found' });
    }
    response.setHeader('etag', '"x"');
    if (request.headers.range === 'bytes=0-0') {
      response.statusCode = 206;
      response.setHeader('content-range', `bytes 0-0/${file.data.length}`);
      response.end(file.data.subarray(0, 1));
    } else if (broken) {
      response.setHeader('content-length', file.data.length);
      response.write(file.data.subarray(0, 1), () => response.destroy());
    } else {
      response.end(file.data);
    }
  });
  return new Promise((done) => listening.listen(0, '127.0.0.1', () => done(listening)));
}

before(async () => {
  server = await startServer();
  hubUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
after(() => server.close());
beforeEach(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'at-moe-hub-'));
  requests = [];
  status = 200;
  broken = false;
  files = {
    'config.json': { data: Buffer.from('{"model_type":"llama"}') },
    'tokenizer.json': { data: Buffer.from('{}') },
    'tokenizer.model': { data: Buffer.from('binary') },
    'README.md': { data: Buffer.from('# tiny') },
    'model.safetensors': { data: weights, lfs: sha256(weights) },
    'consolidated.safetensors': { data: weights, lfs: sha256(weights) },
    'pytorch_model.bin': { data: weights },
  };
});
afterEach(() => rm(cacheDir, { recursive: true }));

const resolveTiny = (options: object = {}, name = 'owner/tiny'): Promise<string> =>
  resolveModel(name, { cacheDir, hubUrl, offline: false, ...options });

test('a local folder is used as it is', async () => {
  assert.equal(await resolveModel(cacheDir, { offline: true }), cacheDir);
  await assert.rejects(resolveModel(join(cacheDir, 'none')), { code: 'ERR_AT_MOE_NOT_FOUND' });
  await assert.rejects(resolveModel('../none'), { code: 'ERR_AT_MOE_NOT_FOUND' });
  await assert.rejects(resolveModel(''), TypeError);
  await assert.rejects(resolveTiny({ revision: '../../x' }), RangeError);
});

test('only the files needed are fetched, in the layout of the usual cache', async () => {
  const progress: DownloadProgress[] = [];
  const folder = await resolveTiny({ onProgress: (p: DownloadProgress) => progress.push(p) });
  assert.equal(folder, join(cacheDir, 'models--owner--tiny', 'snapshots', commit));
  assert.deepEqual((await readdir(folder)).sort(), ['config.json', 'model.safetensors', 'tokenizer.json']);
  assert.deepEqual(await readFile(join(folder, 'model.safetensors')), weights);
  assert.ok((await lstat(join(folder, 'model.safetensors'))).isSymbolicLink());
  const repository = join(cacheDir, 'models--owner--tiny');
  assert.equal(await readFile(join(repository, 'refs', 'main'), 'utf8'), commit);
  assert.ok((await readdir(join(repository, 'blobs'))).includes(sha256(weights)));
  const total = weights.length + 22 + 2;
  assert.deepEqual(progress.at(-1), { file: 'model.safetensors', loadedBytes: total, totalBytes: total });
  assert.ok(progress.every(({ loadedBytes }, i) => i === 0 || loadedBytes >= progress[i - 1]!.loadedBytes));
});

test('a second call fetches no file; a commit needs no request at all', async () => {
  const folder = await resolveTiny();
  requests = [];
  assert.equal(await resolveTiny(), folder);
  assert.ok(!requests.some((request) => request.includes('/resolve/')));
  requests = [];
  assert.equal(await resolveTiny({ revision: commit }), folder);
  assert.deepEqual(requests, []);
});

test('offline only the cache serves', async () => {
  await assert.rejects(resolveTiny({ offline: true }), { code: 'ERR_AT_MOE_OFFLINE', message: /owner\/tiny/ });
  const folder = await resolveTiny();
  requests = [];
  assert.equal(await resolveTiny({ offline: true }), folder);
  assert.deepEqual(requests, []);
  await rm(join(folder, 'model.safetensors'));
  await assert.rejects(resolveTiny({ offline: true }), { code: 'ERR_AT_MOE_OFFLINE' });
});

test('a sharded model is complete with all its shards', async () => {
  delete files['model.safetensors'];
  const shard = (n: number): string => `model-0000${n}-of-00002.safetensors`;
  const index = JSON.stringify({ weight_map: { a: shard(1), b: shard(2) } });
  files['model.safetensors.index.json'] = { data: Buffer.from(index) };
  for (const n of [1, 2]) files[shard(n)] = { data: Buffer.alloc(10, n) };
  const folder = await resolveTiny();
  assert.ok(!(await readdir(folder)).includes('consolidated.safetensors'));
  assert.equal(await resolveTiny({ offline: true }), folder);
  await rm(join(folder, shard(2)));
  await assert.rejects(resolveTiny({ offline: true }), { code: 'ERR_AT_MOE_OFFLINE' });
});

test('failures are coded and leave no half file', async () => {
  await assert.rejects(resolveTiny({}, 'owner/other'), { code: 'ERR_AT_MOE_NOT_FOUND', message: /owner\/other/ });
  await assert.rejects(resolveTiny({ token: 'hf_wrong' }, 'gated/tiny'), {
    code: 'ERR_AT_MOE_IO',
    message: /access token/,
  });
  assert.ok(await resolveTiny({ token: 'hf_right' }, 'gated/tiny'));
  files['model.safetensors'] = { data: weights, lfs: sha256(Buffer.from('other')) };
  await assert.rejects(resolveTiny(), { code: 'ERR_AT_MOE_BAD_FILE', message: /model\.safetensors/ });
  const blobs = await readdir(join(cacheDir, 'models--owner--tiny', 'blobs'));
  assert.ok(!blobs.some((name) => name.includes('incomplete')));
  delete files['model.safetensors'];
  delete files['consolidated.safetensors'];
  await assert.rejects(resolveTiny(), { code: 'ERR_AT_MOE_NOT_FOUND', message: /safetensors/ });
});

test('an unreachable Hub: the cache serves, else a coded error', async () => {
  const unreachable = { hubUrl: 'http://127.0.0.1:9' };
  await assert.rejects(resolveTiny(unreachable), { code: 'ERR_AT_MOE_IO' });
  const folder = await resolveTiny();
  assert.equal(await resolveTiny(unreachable), folder);
  status = 503;
  assert.equal(await resolveTiny(), folder);
});

test('a broken connection is coded and the next call completes the model', async () => {
  broken = true;
  await assert.rejects(resolveTiny(), { code: 'ERR_AT_MOE_IO', message: /owner\/tiny/ });
  broken = false;
  assert.deepEqual(await readFile(join(await resolveTiny(), 'model.safetensors')), weights);
  await assert.rejects(resolveTiny({ token: 'secret' }), TypeError);
});

test('abort', async () => {
  await assert.rejects(resolveTiny({ signal: AbortSignal.abort() }), { code: 'ERR_AT_MOE_ABORTED' });
  const controller = new AbortController();
  const onProgress = ({ file }: DownloadProgress): void => {
    if (file === 'model.safetensors') controller.abort();
  };
  await assert.rejects(resolveTiny({ signal: controller.signal, onProgress }), { code: 'ERR_AT_MOE_ABORTED' });
});
