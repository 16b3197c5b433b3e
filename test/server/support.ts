import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { freshAdapter } from '../../lib/adapter-tensors.js';
import { fromFloat32 } from '../../lib/formats/float-types.js';
import { writeAdapter } from '../../lib/formats/peft.js';
import { type LoadModelOptions, loadModel, type Model } from '../../lib/index.js';
import { createServer, type Server, type ServerOptions } from '../../lib/server/index.js';

const demoBase = fileURLToPath(new URL('../../../examples/demo/base/', import.meta.url));

/** Removed after the tests of the file. */
export const folder = mkdtempSync(join(tmpdir(), 'at-moe-server-'));

const opened: { close(): Promise<void> }[] = [];
after(async () => {
  for (const { close } of opened.reverse()) await close();
  rmSync(folder, { recursive: true, force: true });
});

/** The demo's base with room for texts that do not end before a test has done what it does beside them. */
export const baseDir = join(folder, 'base');
cpSync(demoBase, baseDir, { recursive: true });
const config = JSON.parse(readFileSync(join(baseDir, 'config.json'), 'utf8'));
writeFileSync(join(baseDir, 'config.json'), JSON.stringify({ ...config, max_position_embeddings: 65536 }));

export async function openModel(options: LoadModelOptions = {}): Promise<Model> {
  const sizes = { maxBatch: 8, contextLength: 4096, kvTokens: 16384 };
  const model = await loadModel(baseDir, { device: 'cpu', threads: 1, ...sizes, ...options });
  opened.push({ close: () => model.dispose() });
  return model;
}

/** Writes a PEFT adapter that changes every text; adapters of other seeds change it otherwise. */
export async function writeRandomAdapter(model: Model, name: string, seed: number): Promise<string> {
  const dir = join(folder, name);
  const adapter = freshAdapter({ rank: 4 }, model.config, seed, 'base');
  for (const { b } of adapter.modules) {
    const values = Float32Array.from({ length: (b.data?.length ?? 0) / 4 }, (_, i) => 0.2 * Math.sin(i * 1.7 + seed));
    b.data = fromFloat32('f32', values);
  }
  await writeAdapter(dir, adapter, model.config);
  return dir;
}

/** A mixture of two experts that write different texts. */
export async function openMixture(model: Model, scope: 'sequence' | 'token' = 'sequence') {
  const expert = async (name: string, seed: number) => ({ adapter: await writeRandomAdapter(model, name, seed) });
  const task = { diagnosis: await expert('diagnosis', 1), triage: await expert('triage', 2) };
  return await model.createMixture({ groups: { task }, routing: { scope } });
}

export interface Running {
  server: Server;
  url: string;
  port: number;
  client: OpenAI;
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
  /** The value of a metric, labels included in its name; 0 where it has none yet. */
  metric(name: string): Promise<number>;
}

export async function start(model: Model, options: ServerOptions = {}): Promise<Running> {
  const server = await createServer(model, options);
  const url = await server.listen({ port: 0 });
  opened.push({ close: () => server.close({ graceMs: 0 }) });
  const post = (path: string, body: unknown, headers = {}) =>
    fetch(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body),
    });
  const metric = async (name: string) => {
    const lines = (await (await fetch(`${url}/metrics`)).text()).split('\n');
    return Number(lines.find((line) => line.startsWith(`${name} `))?.slice(name.length) ?? 0);
  };
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKeys?.[0] ?? 'none', maxRetries: 0 });
  return { server, url, port: Number(new URL(url).port), client, post, metric };
}

/** A body as the API words errors. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

/** The fields of `expected` are as they are there. */
export function assertFields(actual: object | undefined, expected: object): void {
  const found = Object.keys(expected).map((key) => [key, (actual as Record<string, unknown> | undefined)?.[key]]);
  assert.deepEqual(Object.fromEntries(found), expected);
}

export const errorOf = async (response: Response) => ((await response.json()) as ErrorBody).error;

/** Resolves when `test` holds; the runner's own limit ends a test where it never does. */
export async function until(test: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await test())) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** No sequence holds keys any more. */
export async function idle(model: Model): Promise<void> {
  await until(async () => {
    const { kvFreeTokens, kvTokens } = await model.memory();
    return kvFreeTokens === kvTokens;
  });
}

/** A connection by hand. */
export interface Dialled {
  socket: Socket;
  opened: Promise<void>;
  closed: Promise<void>;
  /** All that came over it. */
  text(): string;
}

export function dial(port: number): Dialled {
  const socket = connect(port, '127.0.0.1');
  let text = '';
  socket.setEncoding('utf8').on('data', (chunk) => {
    text += chunk;
  });
  socket.on('error', () => undefined);
  return {
    socket,
    opened: new Promise((resolve) => socket.once('connect', resolve)),
    closed: new Promise((resolve) => socket.once('close', () => resolve())),
    text: () => text,
  };
}
